"""The figures of experiments/reproduce.py, from points that experiments/report.py has computed. Needs matplotlib."""
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

MARKERS, COLORS = "os^Dv", ["#000000", "#d55e00", "#0072b2", "#666666", "#009e73"]  # told apart in gray by their shape


def sd(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def gap(axes, s, points):
    models = list(dict.fromkeys(model for model, *_ in points))
    for panel, task in zip(axes, s["tasks"]):
        some = [each for each in points if each[1] == task]
        places = [models.index(model) for model, *_ in some]
        for j, (name, color) in enumerate((("pre-trained", "gray"), ("random weights", "white"))):
            values = [each[2 + j] for each in some]
            panel.barh([place + 0.4 * j for place in places], [statistics.mean(each) for each in values], 0.38,
                       xerr=[sd(each) for each in values], capsize=2, color=color, edgecolor="black",
                       label=name if panel is axes[0] else None)
        panel.set(title=task, xlabel="test accuracy (%)")
    axes[0].set_yticks([i + 0.2 for i in range(len(models))], models)
    axes[0].invert_yaxis()


def size(axes, s, points):
    for i, (task, values) in enumerate(points.items()):
        axes.errorbar([n for n, _ in values], [statistics.mean(each) for _, each in values],
                      [sd(each) for _, each in values], marker=MARKERS[i], color=COLORS[i], capsize=3, label=task)
    sizes = sorted({n for values in points.values() for n, _ in values})
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.set(xlabel="articles in the pre-training set", ylabel="gap: accuracy gained (points)")


def overlap(axes, s, points):
    axes.errorbar([x for _, x, _ in points], [statistics.mean(each) for *_, each in points],
                  [sd(each) for *_, each in points], marker="o", color="black", capsize=3, label=s["overlap"][0])
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set(xlabel=f"{points[0][0]} (share)", ylabel="gap: accuracy gained (points)")


def committee(axes, s, points):
    for i, (task, (sizes, deep)) in enumerate(points.items()):
        k, means, sds = zip(*sizes)
        axes.errorbar(k, means, sds, marker=MARKERS[i], color=COLORS[i], capsize=3,
                      label=f"{task}, committee of {s['main']}")
        mean = statistics.mean(deep)
        axes.axhline(mean, color=COLORS[i], linestyle=["--", ":", "-."][i % 3], label=f"{task}, {s['deep']}")
        axes.axhspan(mean - sd(deep), mean + sd(deep), color=COLORS[i], alpha=0.12, linewidth=0)
    axes.set(xlabel="members", ylabel="test accuracy (%)", xticks=[k for k, *_ in next(iter(points.values()))[0]])


def latency(axes, s, points):
    for panel, batch in zip(axes, (1, 64)):
        bars = panel.barh(range(len(points)), [1e3 * each[f"seconds_{batch}"] for each in points], 0.6,
                          color="lightgray", edgecolor="black")
        panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        panel.set(title=f"batch of {batch}", xlabel="time a batch, 128 tokens a text (ms)")
        panel.margins(x=0.25)
    axes[0].set_yticks(range(len(points)), [each["name"].replace(", ", ",\n") for each in points])
    axes[0].invert_yaxis()


def draw(scale, s, points, folder):
    """Write folder/SCALE-NAME.png for each figure that has points."""
    folder.mkdir(parents=True, exist_ok=True)
    for function in (gap, size, overlap, committee, latency):
        if points[function.__name__] and any(points[function.__name__]):
            panels = {gap: len(s["tasks"]), latency: 2}.get(function, 1)
            figure, axes = plt.subplots(1, panels, figsize=(3 + 2 * panels, 3.5), layout="constrained", sharey=True,
                                        squeeze=False)
            function(axes[0] if function in (gap, latency) else axes[0, 0], s, points[function.__name__])
            if function is not latency:
                figure.legend(loc="outside upper center", ncols=2, fontsize=7, frameon=False)
            figure.savefig(folder / f"{scale}-{function.__name__}.png", dpi=200)
            plt.close(figure)
