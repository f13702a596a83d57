"""Search for the settings of a solver on a folder of pictures: `invdiff tune`.

space     which settings there are to try, from the solver's declared parameters
sets      refusing pictures of a test set
search    the search itself, with Optuna
outcome   the whole: from pictures to a preset, with the numbers on pictures that were held back
"""
