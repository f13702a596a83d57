"""How exactly a solver samples p(x | y): its samples are compared with posteriors that are known in closed form.

problems   Gaussian priors under every linear operator, and two-dimensional toys: x, y and the exact posterior
mixture    the Gaussian-mixture benchmark of the posterior-sampling papers
batteries  the cases of a validation
measures   what is measured of samples, and what as many exact samples score
running    one solver on one case
text       tables, text and plain data of the results;  page: the same as HTML, with plots
sbc        simulation-based calibration, where the posterior is not known
"""
