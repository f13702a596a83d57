"""How good a restoration is: PSNR, SSIM and other scores of images, intervals, calibration, bounds on the likelihood."""
