"""Dense prediction: classes, depth and normals of every pixel from one network."""
