"""Sparse 3-D models of MinkowskiEngine: tasks (vgg, resnet, unet), their data and the engine itself."""
