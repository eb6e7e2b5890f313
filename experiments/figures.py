"""The figures of experiments/reproduce.py, from the points that report.py has computed.

A point ends in a mean and a standard deviation, which becomes its error bar.
"""
from experiments.plan import datasets_of

MARKERS = "os^Dv*"  # tell lines apart in gray
COLORS = ["#000000", "#d55e00", "#0072b2", "#666666", "#009e73", "#cc79a7"]


def line(axes, points, i=0, label=None, style="-"):
    """Draw points (x, mean, standard deviation) in the i-th colour."""
    x, means, deviations = zip(*points)
    axes.errorbar(x, means, deviations, marker=MARKERS[i], color=COLORS[i], capsize=3, label=label,
                  linestyle=style)


def short_name(task):
    """'fewrel, 10 a class'"""
    dataset, _, n = task.partition(" --n_per_class=")
    return f"{dataset}, {n} a class" if n else dataset


def gap(axes, scale, points):
    models = list(dict.fromkeys(model for model, *_ in points))
    for panel, task in zip(axes, scale.tasks):
        bars = {model: pair for model, of, *pair in points if of == task}
        if not bars:  # none of them has been run yet
            continue
        for j, (name, color) in enumerate([("pre-trained", "gray"), ("random weights", "white")]):
            means, deviations = zip(*[pair[j] for pair in bars.values()])
            panel.barh([models.index(model) + 0.4 * j for model in bars], means, 0.38,
                       xerr=deviations, capsize=2, color=color, edgecolor="black", label=name)
        panel.set(title=short_name(task), xlabel="test accuracy (%)")
    axes[0].set_yticks([i + 0.2 for i in range(len(models))], models)
    axes[0].invert_yaxis()


def examples(axes, scale, points):
    names = list(dict.fromkeys(name for lines in points.values() for name in lines))
    for panel, (dataset, lines) in zip(axes, points.items()):
        for name, values in lines.items():
            line(panel, values, names.index(name), name)
        ticks = [n for n, *_ in next(iter(lines.values()))]
        panel.set(title=dataset, xlabel="training examples", xscale="log")
        panel.set_xticks(ticks, [f"{n:,}" for n in ticks])
        panel.minorticks_off()
    axes[0].set(ylabel="test accuracy (%)")


def size(axes, scale, points):
    for i, (task, (sizes, steps)) in enumerate(points.items()):
        line(axes[0], sizes, i, short_name(task))
        if steps:
            line(axes[0], steps, i, "" if i else "dashed: as many steps for each set", "--")
    ticks = sorted({n for series in points.values() for part in series for n, *_ in part})
    axes[0].axhline(0, color="gray", linewidth=0.8)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes[0].minorticks_off()
    axes[0].set(xlabel="articles in the pre-training set", ylabel="gap: accuracy gained (points)")


def overlap(axes, scale, points):
    (measure, shares), = points.items()
    line(axes[0], shares, label=short_name(scale.overlap_task))
    axes[0].axhline(0, color="gray", linewidth=0.8)
    axes[0].set(xlabel=f"{measure} (share)", ylabel="gap: accuracy gained (points)")


def committee(axes, scale, points):
    """A panel for each dataset, with a line for each number of examples."""
    numbers = {task: short_name(task).partition(", ")[2] or "all examples" for task in points}
    names = list(dict.fromkeys(numbers.values()))
    for panel, dataset in zip(axes, datasets_of(points)):
        for task in (task for task in points if task.split()[0] == dataset):
            name, (sizes, (mean, deviation)) = numbers[task], points[task]
            i = names.index(name)
            line(panel, sizes, i, name)
            panel.axhline(mean, color=COLORS[i], linestyle="--")
            panel.axhspan(mean - deviation, mean + deviation, color=COLORS[i], alpha=0.12,
                          linewidth=0)
        panel.set(title=dataset, xlabel=f"members, each a {scale.main_model}",
                  xticks=[k for k, *_ in sizes])
    axes[0].set(ylabel=f"test accuracy (%); dashed: one {scale.deep_model}")


def latency(axes, scale, points):
    for panel, batch in zip(axes, (1, 64)):
        times = [1e3 * point[f"seconds_{batch}"] for point in points]
        bars = panel.barh(range(len(points)), times, 0.6, color="lightgray", edgecolor="black")
        panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        panel.set(title=f"batch of {batch}", xlabel="time a batch, 128 tokens a text (ms)")
        panel.margins(x=0.25)
    names = [point["name"].replace(", ", ",\n") for point in points]
    axes[0].set_yticks(range(len(points)), names)
    axes[0].invert_yaxis()


def draw(scale, points, folder):
    """Write folder/SCALE-NAME.png of each figure in `points` ({name: points}), see report.py.
    ImportError without matplotlib."""
    from matplotlib.figure import Figure  # not on top: the rest works without it
    folder.mkdir(parents=True, exist_ok=True)
    panels = {gap: len(scale.tasks), examples: len(points.get("examples", ())), size: 1,
              overlap: 1, committee: len(datasets_of(points.get("committee", ()))), latency: 2}
    for plot, n in panels.items():
        name = plot.__name__
        if name not in points:
            continue
        figure = Figure(figsize=(3 + 2 * n, 3.5), layout="constrained")
        axes = figure.subplots(1, n, squeeze=False, sharey=plot is not committee)
        plot(axes[0], scale, points[name])
        if plot is not latency:
            labels = {}  # of each name one, whichever panels it is in
            for panel in axes[0]:
                handles, names = panel.get_legend_handles_labels()
                labels = dict(zip(names, handles)) | labels
            figure.legend(labels.values(), labels, loc="outside upper center", ncols=max(n, 2),
                          fontsize=7, frameon=False)
        figure.savefig(folder / f"{scale.name}-{name}.png", dpi=200)
