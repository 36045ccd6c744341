"""The claims of later papers (since 2020), as the ledger states them.

Sentences are shortened from the papers' abstracts. "(our words)" marks a claim that no paper at
hand states in one sentence.
"""

from ..report.ledger import Row

ROWS = (
    Row(
        "SI-01",
        "synthetic",
        "Xin et al. 2022: rules for several tasks reach nothing beyond what static weights reach "
        "that are tuned as well.",
        "since.scalarization",
        instead="benchmarks of images and translation",
    ),
    Row(
        "SI-02",
        "synthetic",
        "Kurin et al. 2022: the plain mean, with the regularisation and the search of a single "
        "task, matches or improves upon the rules.",
        "since.scalarization",
        instead="benchmarks of images and reinforcement learning",
    ),
    Row(
        "SI-03",
        "synthetic",
        "Hu et al. 2023: in a linear network too narrow for its tasks there are Pareto optimal "
        "points that no static weights reach.",
        "since.narrow",
    ),
    Row(
        "SI-04",
        "synthetic",
        "Hu et al. 2023: rules such as MGDA find balanced solutions there, which static weights "
        "cannot.",
        "since.narrow",
    ),
    Row(
        "SI-05",
        "exact",
        "Elich et al. 2023: Adam has a partial invariance to the scales of losses: the update of a "
        "task's own parameters does not change.",
        "since.adam_heads",
    ),
    Row(
        "SI-06",
        "synthetic",
        "Elich et al. 2023: conflicting angles are not a problem of several tasks alone: cosines "
        "of tasks are no lower than those of one task's samples.",
        "since.conflict",
        instead="networks for scenes and faces",
    ),
    Row(
        "SI-07",
        "synthetic",
        "Mueller et al. 2024: the amount of conflict goes with worse training losses and does not "
        "predict generalization.",
        "since.conflict",
        instead="benchmarks of images and text",
    ),
    Row(
        "SI-08",
        "synthetic",
        "Quinton & Rey 2024: with a loss a sample UPGrad trains better than the direct "
        "minimization of their average.",
        "since.samples",
        instead="subsets of image data sets",
    ),
    Row(
        "SI-09",
        "exact",
        "Senushkin et al. 2023: the condition number of the gradients reflects conflict and "
        "dominance.",
        "since.aligned",
    ),
    Row(
        "SI-10",
        "synthetic",
        "Senushkin et al. 2023: Aligned-MTL converges to an optimum of weights that are chosen "
        "beforehand.",
        "since.aligned",
    ),
    Row(
        "SI-11",
        "synthetic",
        "After Miao et al. 2026 (our words): the gradient of a step is a small part of Adam's "
        "update, so that the updates of two rules are far closer than their directions.",
        "since.adam_updates",
    ),
    Row(
        "SI-12",
        "synthetic",
        "Zhang & Cheng 2026: where tasks share less than 30 % of their samples, cosines of "
        "gradients are noise; above 40 % they show how the tasks are related.",
        "since.overlap",
        instead="molecules and their measured properties",
    ),
    Row(
        "SI-13",
        "exact",
        "2026 (our words): a reward rises to first order where its covariance with the scalarised "
        "advantage is positive.",
        "since.rewards",
    ),
    Row(
        "SI-14",
        "exact",
        "Liu et al. 2026: to sum rewards and then normalise maps different rewards to one "
        "advantage; to normalise each before the sum keeps more of them apart.",
        "since.rewards",
    ),
    Row(
        "SI-15",
        "synthetic",
        "Royer et al. 2023: population-based training searches efficiently for the weights of a "
        "scalarization when there are many tasks: it finds a grid's best with fewer runs.",
        "since.population",
        instead="benchmarks of images",
    ),
    Row(
        "SI-16",
        "exact",
        "Guzmán-Cordero et al. 2025: Woodbury's identity gives the step of energy natural gradient "
        "descent with far less computation.",
        "since.residual_space",
    ),
    Row(
        "SI-17",
        "synthetic",
        "Guzmán-Cordero et al. 2025: SPRING's momentum accelerates the convergence of energy "
        "natural gradient descent.",
        "since.residual_space",
        instead="differential equations in several dimensions",
    ),
    Row(
        "SI-18",
        "synthetic",
        "Jnini & Vella 2025: natural gradients in the space of residuals end at an L2 error that "
        "is one to three orders of magnitude below that of Adam and of quasi-Newton methods.",
        "since.residual_space",
        instead="differential equations in several dimensions",
    ),
    Row(
        "SI-19",
        "exact",
        "Liu et al. 2025: ConFIG's update has a positive product with every term's gradient, and "
        "one rate for all terms.",
        "since.terms",
    ),
    Row(
        "SI-20",
        "synthetic",
        "Liu et al. 2025: ConFIG is consistently better than other methods on physics losses.",
        "since.terms",
        instead="differential equations in several dimensions",
    ),
    Row(
        "SI-21",
        "synthetic",
        "Wang et al. 2022: the terms of a physics loss converge at rates far apart, and weights "
        "from the neural tangent kernel balance them.",
        "since.terms",
    ),
    Row(
        "SI-22",
        "synthetic",
        "Wang et al. 2022: weights from the neural tangent kernel make physics-informed networks "
        "more accurate.",
        "since.terms",
        instead="differential equations in several dimensions",
    ),
    Row(
        "SI-23",
        "synthetic",
        "Wang et al. 2025: second-order methods, SOAP above all, mitigate conflicts of gradients: "
        "terms and steps are better aligned than under Adam.",
        "since.preconditioned",
        instead="differential equations in several dimensions",
    ),
    Row(
        "SI-24",
        "synthetic",
        "Buffelli et al. 2024: on minibatches exact Gauss-Newton saturates on the training loss, "
        "and generalises poorly.",
        "since.minibatches",
        instead="reversible networks on benchmarks of images",
    ),
    Row(
        "SI-25",
        "synthetic",
        "Fifty et al. 2021: how one task's gradient would affect the other losses, measured in a "
        "single run of all tasks, selects which tasks should train together.",
        "since.grouping",
        instead="benchmarks of images",
    ),
    Row(
        "SI-26",
        "synthetic",
        "Li et al. 2024: projected gradients of one network of all tasks estimate the affinities "
        "of groups without training them, close to the true ones.",
        "since.grouping",
        instead="graphs and language models",
    ),
    Row(
        "SI-27",
        "synthetic",
        "Ayman et al. 2026: the similarity of the updates of two tasks measures their affinity, "
        "and extends linearly to groups.",
        "since.grouping",
        instead="benchmarks of several domains",
    ),
    Row(
        "SI-28",
        "synthetic",
        "After Standley et al. 2020 (our words): what tasks gain in pairs, averaged, tells what "
        "they gain in larger groups, which then need no training.",
        "since.grouping",
        instead="networks for scenes",
    ),
)
