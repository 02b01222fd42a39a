"""Text graphs shaped like well-known branching networks, with made-up costs: for benchmarks and tests.

Every convolution is three layers: convolution, normalisation, activation. Times fall and parameters grow
with depth as in the real networks; the numbers are synthetic and of no device.
"""

from collections.abc import Callable, Mapping, Sequence

from stagewright.pipedream_graph import TextGraph, TextNode


class _Builder:
    """Adds layers; the cost of one follows from its place."""

    def __init__(self) -> None:
        self.nodes: list[TextNode] = []
        self.edges: list[tuple[str, str]] = []
        self.scale = 1.0
        """Halved where a network halves its resolution."""

    def add(
        self, description: str, sources: Sequence[str], work: float = 0.1, held: float = 0.0
    ) -> str:
        name = f"node{len(self.nodes) + 1}"
        vary = 1 + (len(self.nodes) * 7919 % 13) / 26
        forward_ms = round(work * vary * (0.5 + self.scale / 2), 3)
        self.nodes.append(
            TextNode(
                name=name,
                description=description,
                forward_ms=forward_ms,
                backward_ms=2 * forward_ms,
                activation_bytes=float(round(5e7 * self.scale * vary)),
                parameter_bytes=float(round(held / self.scale)),
            )
        )
        self.edges += [(source, name) for source in sources]
        return name

    def convolution(self, source: str, work: float = 2.0) -> str:
        name = self.add("Conv2d()", [source], work, held=2e5 * work)
        name = self.add("BatchNorm2d()", [name], work / 6, held=2e3)
        return self.add("ReLU()", [name], work / 10)

    def separable(self, source: str) -> str:
        for _ in range(2):
            source = self.add("ReLU()", [source], 0.1)
            source = self.add("Conv2d(depthwise)", [source], 0.6, held=1e4)
            source = self.add("Conv2d(pointwise)", [source], 0.8, held=1e5)
            source = self.add("BatchNorm2d()", [source], 0.2, held=2e3)
        return source

    def finish(self, source: str) -> TextGraph:
        source = self.add("AdaptiveAvgPool2d()", [source], 0.1)
        self.add("Linear()", [source], 0.3, held=8e6 * self.scale)
        return TextGraph(nodes=tuple(self.nodes), edges=tuple(self.edges))


def resnet_like(blocks: Sequence[int] = (3, 4, 6, 3)) -> TextGraph:
    """Return residual blocks of three convolutions; (3, 4, 6, 3) as in ResNet50."""
    build = _Builder()
    last = build.convolution(build.add("Input0", []))
    for group, num_blocks in enumerate(blocks):
        build.scale = 0.5**group
        for block in range(num_blocks):
            short = last if block else build.convolution(last)
            inner = build.convolution(build.convolution(build.convolution(last, 0.7)), 0.7)
            last = build.add("ReLU()", [build.add("Add()", [inner, short])])
    return build.finish(last)


def inception_like(num_modules: int = 11) -> TextGraph:
    """Return modules of four parallel branches of one to three convolutions, joined by a concatenation."""
    build = _Builder()
    last = build.convolution(build.convolution(build.add("Input0", [])))
    for number in range(num_modules):
        build.scale = 0.5 ** (number * 3 // num_modules)
        ends = []
        for length in (1, 2, 3):
            branch = last
            for _ in range(length):
                branch = build.convolution(branch)
            ends.append(branch)
        pooled = build.add("AvgPool2d()", [last], 0.2)
        ends.append(build.convolution(pooled, 0.5))
        last = build.add("Concat(1)", ends)
    return build.finish(last)


def nasnet_like(num_cells: int = 18) -> TextGraph:
    """Return cells of five pairs of operations, each cell on the two before it, as in NASNet-A."""
    build = _Builder()
    before = last = build.convolution(build.add("Input0", []))
    for cell in range(num_cells):
        build.scale = 0.5 ** (cell * 3 // num_cells)
        left, right = build.convolution(before, 0.5), build.convolution(last, 0.5)
        pairs = [
            (build.separable(right), build.separable(left)),
            (build.separable(left), build.separable(left)),
            (build.add("AvgPool2d()", [right]), left),
            (build.add("AvgPool2d()", [left]), build.add("AvgPool2d()", [left])),
            (build.separable(right), right),
        ]
        sums = [build.add("Add()", pair) for pair in pairs]
        before, last = last, build.add("Concat(1)", [left, *sums])
    return build.finish(last)


GRAPHS: Mapping[str, Callable[[], TextGraph]] = {
    "resnet50-like": resnet_like,
    "resnet101-like": lambda: resnet_like((3, 4, 23, 3)),
    "inception-like": inception_like,
    "nasnet-like": nasnet_like,
    "nasnet-large-like": lambda: nasnet_like(22),
}
"""By name, a function that makes the graph."""
