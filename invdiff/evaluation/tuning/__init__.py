"""Search for the settings of a solver on a folder of pictures: `invdiff tune`.

space     the settings to try, from the solver's declared parameters
guard     refusing pictures of a test set
search    the search itself, with Optuna
outcome   from pictures to a preset, with the scores on pictures that were held back
"""
