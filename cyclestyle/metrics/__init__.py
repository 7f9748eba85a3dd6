"""Metrics of translation quality: PSNR and SSIM for pairs of images, colour distance for sets of images."""
