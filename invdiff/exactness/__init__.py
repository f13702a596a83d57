"""How exactly a solver samples p(x | y): its samples against posteriors that are known in closed form.

problems   Gaussian priors under every linear operator, two-dimensional toys: x, y and the exact posterior
mixture    the Gaussian-mixture benchmark of the posterior-sampling papers
measures   what is compared, and what exact samples of the same number score
running    one solver on one problem
report     the tables;  page: the same as HTML, with plots
"""
