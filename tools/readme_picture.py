"""Draw the picture of the README, as the first page of the book has it."""

from pathlib import Path

import matplotlib.pyplot as plt

import bilrp
from bilrp.book import data
from bilrp.show import plot

persian, siamese = data.cats(256)[0][1:3]
small = data.cats(128)[0][1:3]
e = bilrp.explain(bilrp.vgg16(), *map(bilrp.normalize, small), bilrp.vgg16_rules(), patch=8)
fig, ax = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
plot.arcs(e, persian, siamese, ax=ax, title="")
path = Path(__file__).resolve().parents[1] / "assets" / "two_cats.jpg"
fig.savefig(path, dpi=150, pil_kwargs={"quality": 88})
print(path)
