"""Two solvers on the same measurements, from Python: the table, the paired difference, one row's images.

python docs/examples/compare_solvers.py [PRIOR]
"""

import sys

import invdiff
from invdiff.scores.statistics import paired

prior = invdiff.load_prior(sys.argv[1] if len(sys.argv) > 1 else "natural")

# Clean photographs, degraded here; every combination of what is a list is a row.
found = invdiff.evaluate(
    "skimage",
    operator=["gaussian_blur:sigma=2", "inpaint:keep=0.3"],
    noise=0.05,
    solver=["ddrm", "diffpir"],
    steps=5,
    prior=prior,
    crop=64,
)
print(found)

# The same images under both solvers: is the difference real?
for operator in ("gaussian_blur:sigma=2", "inpaint:keep=0.3"):
    psnr = {
        solver: [i["psnr"] for i in found.images if (i["operator"], i["solver"]) == (operator, solver)]
        for solver in ("ddrm", "diffpir")
    }
    result = paired(psnr["ddrm"], psnr["diffpir"])
    print(f"{operator}: ddrm - diffpir = {result.difference.mean:+.2f} dB, p = {result.p_value:.2f}")

# A DataFrame of the rows, where pandas is installed: found.to_pandas()
