"""Metrics of translation quality, as functions of tensors: pairs of images, and features of sets of images."""
