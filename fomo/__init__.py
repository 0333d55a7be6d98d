"""From a pretrained 3D UNet and a few labelled volumes to a model with honest numbers, in plain PyTorch."""
