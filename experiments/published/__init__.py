"""CelebA, CIFAR-100 and QM9 from the files that the papers' code reads, with any rule."""
