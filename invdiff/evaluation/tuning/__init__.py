"""Search for the settings of a solver on a folder of pictures: `invdiff tune`.

space    which settings there are to try, from the solver's declared parameters
data     the pictures, split into a training and a held-back part, and their measurements
sets     refusing pictures of a test set
search   the search itself, with Optuna
report   the numbers of a search, as text and as a preset
"""
