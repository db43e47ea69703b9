"""Shares of the bare file as bars: an SVG that needs nothing to be seen."""

from xml.sax.saxutils import escape

from benchlib.report import MEDIA, name_of, title

# sealblk's bar has an outline, so that it is found without colours, too.
COLOURS = ["#1f6feb", "#9aa4b2", "#d0a43c", "#3a9d7a", "#b4637a", "#7d6bb0"]
BAR, GAP, GROUP = 13, 2, 14
LEFT, WIDTH, RIGHT = 215, 480, 70


def svg(report):
    """One chart for each medium, below each other."""
    summary = report["summary"]
    fewest = min((entry["queues"] for entry in summary), default=1)
    entries = [e for e in summary if e["queues"] == fewest and e.get("share") is not None]
    servers = [name for name in dict.fromkeys(e["backend"] for e in entries) if name != "bare"]
    if not servers:
        raise ValueError("there is nothing to compare: no server ran beside the bare file")
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(servers)}
    parts, y = [], 24
    x = LEFT
    for name in servers:
        label = name_of(name).replace("*", "")
        parts.append(_bar(x, y - 10, 12, 12, colours[name], name == "sealblk"))
        parts.append(_text(x + 17, y, label))
        x += 34 + 7.2 * len(label)
    widest = max(LEFT + WIDTH + RIGHT, x)
    y += 20
    for medium in dict.fromkeys(e["medium"] for e in entries):
        of_medium = [e for e in entries if e["medium"] == medium]
        heading = MEDIA.get(medium, medium).split(",")[0]
        y += 16
        parts.append(_text(LEFT, y, f"{heading}: IOPS as a share of the bare file's", bold=True))
        y += 12
        top = y
        scale = WIDTH / max(1.0, *(e["share"] for e in of_medium))
        for job in dict.fromkeys(e["job"] for e in of_medium):
            bars = [e for s in servers for e in of_medium if e["job"] == job and e["backend"] == s]
            middle = y + (len(bars) * (BAR + GAP)) / 2 + 4
            parts.append(_text(LEFT - 8, middle, title(job), anchor="end"))
            for entry in bars:
                name, length = entry["backend"], entry["share"] * scale
                parts.append(_bar(LEFT, y, length, BAR, colours[name], name == "sealblk"))
                parts.append(_text(LEFT + length + 5, y + 10.5, f"{entry['share']:.2f}", size=10))
                y += BAR + GAP
            y += GROUP
        line = LEFT + scale
        # Behind the bars: where the bare file is.
        parts.insert(
            0,
            f'<line x1="{line:.1f}" y1="{top - 4}" x2="{line:.1f}" y2="{y - GROUP + 2}" '
            'stroke="#8b949e" stroke-dasharray="3 3"/>',
        )
        y += 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{widest:.0f}" height="{y:.0f}" '
        f'viewBox="0 0 {widest:.0f} {y:.0f}" font-family="sans-serif" font-size="12" role="img">'
        "<title>IOPS of vhost-user-blk servers as shares of the bare file's</title>"
        '<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def _bar(x, y, width, height, colour, outlined):
    outline = ' stroke="#0b2f6b" stroke-width="1"' if outlined else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" '
        f'fill="{colour}"{outline}/>'
    )


def _text(x, y, text, anchor="start", size=12, bold=False):
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight} '
        f'fill="#24292f">{escape(text)}</text>'
    )
