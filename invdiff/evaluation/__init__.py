"""Measuring restorations: PSNR and SSIM under one documented protocol. Nothing heavy is imported here."""
