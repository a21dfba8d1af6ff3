"""One self-contained HTML page about an evaluation run.

matching.py     which detections are right, and what is wrong with the others: numpy arrays over the whole run
analysis.py     curves, thresholds, histograms, confusion, the cost of errors
gallery.py      pictures and masks as small as the page needs them
memory_view.py  what the memory file shows without its encoder: components, clusters, similarities
patches.py      what the encoder sees inside the references: needs DINOv2
page.py         all of it as one HTML file; page.html, page.css, *.js are its parts
"""
