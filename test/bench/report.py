#!/usr/bin/env python3
"""report.py RESULTS.json PAGE.md PLOT.svg: put the figures of compare.py --json into the benchmark page.

The table replaces what stands between the page's two markers; the rest of the page is written by hand. The plot, drawn
when matplotlib is there, shows each item's speed relative to native: 1 is native, a bar for Nestor and one for the
better TCG.
"""
import datetime
import json
import os
import sys

BEGIN, END = "<!-- figures begin -->", "<!-- figures end -->"
HIGHER_IS_BETTER = ("MB/s", "GB/s", "MFLOPS")


def speed(unit, value, reference):
    """How many times as fast as the reference that figure is."""
    return value / reference if unit in HIGHER_IS_BETTER else reference / value


def better_tcg(unit, medians, item):
    values = [medians[engine][item] for engine in ("tcg", "tcg64") if medians.get(engine, {}).get(item)]
    if not values:
        return None
    return max(values) if unit in HIGHER_IS_BETTER else min(values)


def processor():
    with open("/proc/cpuinfo") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    release = ".".join(os.uname().release.split(".")[:2])
    return f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} CPUs, Linux {release}"


def table(results):
    units, medians = results["units"], results["medians"]
    nestor, native = medians.get("nestor", {}), medians.get("native", {})
    lines = [f"Measured {datetime.date.today()} on {processor()}; medians of {max(map(len, results['runs'].values()))} runs.", "",
             "| item | unit | native | nestor | better TCG | nestor faster than TCG by | slower than native by |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    show = lambda value: "-" if value is None else f"{value:.4g}"
    for item, unit in units.items():
        if item == "total_bench_time":
            continue
        ours, host, tcg = nestor.get(item), native.get(item), better_tcg(unit, medians, item)
        lines.append(f"| {item} | {unit} | {show(host)} | {show(ours)} | {show(tcg)} | "
                     f"{show(speed(unit, ours, tcg) if ours and tcg else None)} | "
                     f"{show(speed(unit, host, ours) if ours and host else None)} |")
    return "\n".join(lines)


def plot(results, path):
    try:
        import matplotlib
    except ImportError:
        print("report: no matplotlib, so no plot; apt-get install python3-matplotlib", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "nestor"  # The same figures give the same file.
    from matplotlib import pyplot

    units, medians = results["units"], results["medians"]
    native = medians.get("native", {})
    items = [item for item in units if native.get(item) and item != "total_bench_time"]
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(items) + 1.2))
    for shift, label, colour, figures in (
            (-0.2, "nestor", "#20639b", {item: medians.get("nestor", {}).get(item) for item in items}),
            (0.2, "better TCG", "#b0b0b0", {item: better_tcg(units[item], medians, item) for item in items})):
        rows = [(row + shift, speed(units[item], figures[item], native[item]))
                for row, item in enumerate(items) if figures[item]]
        if rows:
            axes.barh([row for row, _ in rows], [value for _, value in rows], height=0.38, color=colour, label=label)
    axes.set_yticks(range(len(items)), items)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed relative to native (1 = native, logarithmic)")
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    return True


def main():
    with open(sys.argv[1]) as f:
        results = json.load(f)
    page, picture = sys.argv[2], sys.argv[3]
    with open(page) as f:
        text = f.read()
    if BEGIN not in text or END not in text:
        sys.exit(f"report: {page} lacks the markers {BEGIN} and {END}")
    body = table(results)
    if plot(results, picture):
        body += f"\n\n![Speed relative to native]({os.path.relpath(picture, os.path.dirname(page))})"
    text = text[:text.index(BEGIN)] + BEGIN + "\n" + body + "\n" + text[text.index(END):]
    with open(page, "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
