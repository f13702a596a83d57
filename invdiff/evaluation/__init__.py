"""Solvers on benchmark images: restored and scored under one protocol, reported, timed and tuned."""
