"""Metrics of translation quality: PSNR, SSIM and colour distance."""
