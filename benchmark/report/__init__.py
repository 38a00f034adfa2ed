"""Reports: what a rule kept and what it threw away, as one page for people.

exp_dir/report/index.html          the page; pictures and plots stand inside it, and it links to nothing
exp_dir/report/sheet-*.png         samples that were kept, and samples that were dropped, with their captions
exp_dir/report/kinds.png           the share kept of each planted kind, where the pool has such labels
exp_dir/report/scores-*.png        how a rule's scores, or a similarity, are distributed over kept and dropped rows
exp_dir/report/fraction-*.png      what a rule would keep of each kind, or language, at other fractions
exp_dir/report/tasks.png           task scores among the board's entries, once a seed has the whole suite
exp_dir/report/report.json         what all of it was made from

A report is derived: where its inputs changed it is generated again. Planted labels are shown here and never handed to a
filter. Whatever a stranger typed is escaped, and whatever a stranger drew is decoded and drawn again.
"""
