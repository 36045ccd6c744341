"""`python .ci/stubs.py TORCH`: let a wheel of torch for CUDA load without NVIDIA's libraries.

TORCH is the folder `torch` of an environment. For each library of NVIDIA's that its objects want,
one goes to its `lib/` that has the names asked of it, in the versions asked for. Every function in
it answers that there is no device, so torch computes on the CPU. It needs gcc and readelf. A wheel
for CPUs asks for none of them, and gets none.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

NVIDIA = re.compile(r"lib(?:cu[a-zA-Z]+|nv[a-zA-Z_]+|nccl)\.so[.\d]*")
NAMES = re.compile(r"(?:__)?(?:cu|nv|nccl)\w*")
NO_DEVICE = 100  # in the words of the CUDA runtime


def read(path: Path, *flags: str) -> str:
    command = ["readelf", "--wide", *flags, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def asked(torch: Path) -> dict[str, dict[str, set[str]]]:
    """Of each library that nobody has: in each version ("" for none) the names asked for."""
    objects = sorted([*torch.glob("*.so"), *(torch / "lib").glob("*.so*")])
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    defined, plain = set[str](), list[tuple[list[str], set[str]]]()
    for path in objects:
        needed = re.findall(r"NEEDED.*\[(.+)\]", read(path, "--dynamic"))
        missing = [x for x in needed if NVIDIA.fullmatch(x) and not (torch / "lib" / x).exists()]
        for library in missing:
            found[library][""] |= set()
        library, owner = "", dict[str, str]()
        for line in read(path, "--version-info").splitlines():
            if match := re.search(r"File: (\S+)", line):
                library = match[1]
            elif match := re.search(r"Name: (\S+)", line):
                owner[match[1]] = library
        names = set[str]()
        for line in read(path, "--dyn-syms").splitlines():
            parts = line.split()
            if len(parts) < 8 or not parts[0][:-1].isdigit():
                continue
            name, _, version = parts[7].partition("@")
            if parts[6] != "UND":
                defined.add(name)
            elif owner.get(version) in missing:
                found[owner[version]][version].add(name)
            elif not version and NAMES.fullmatch(name):
                names.add(name)
        plain.append((missing, names))
    for missing, names in plain:  # whichever library has them: a loader takes the first
        for library in missing:
            found[library][""] |= names - defined
    return found


def write(library: str, versions: dict[str, set[str]], folder: Path) -> None:
    """A library of functions that fail; one that should give words gives an empty text."""
    names = sorted(set[str]().union(*versions.values()))
    code = [
        f'const char *{x}() {{ return ""; }}'
        if re.search("String|Name|LastError$", x) and "Get" in x and "_v2" not in x
        else f"int {x}() {{ return {NO_DEVICE}; }}"
        for x in names
    ]
    script = [
        f"{version} {{ global: {'; '.join(sorted(found))}; }};"
        for version, found in versions.items()
        if version and found
    ]
    with tempfile.TemporaryDirectory() as work:
        source, exports = Path(work, "stub.c"), Path(work, "exports")
        source.write_text("\n".join(code) + "\n")
        exports.write_text("\n".join(script) + "\n")
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
        command += [f"-Wl,--version-script,{exports}"] if script else []
        subprocess.run([*command, "-o", str(folder / library), str(source)], check=True)


def main() -> None:
    torch = Path(sys.argv[1])
    found = asked(torch)
    for library, versions in found.items():
        write(library, versions, torch / "lib")
    print(f"{len(found)} stubs of NVIDIA's libraries in {torch / 'lib'}")


if __name__ == "__main__":
    main()
