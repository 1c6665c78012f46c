"""Short texts to look at where a user gives none. Written for this purpose."""

SAMPLES = {
    "English": """\
The old lighthouse keeper had counted 1,024 ships since March, and he remembered nearly all of them. "You'd be
surprised," he told the children, "how different two grey boats can look at 5:30 in the morning!" They weren't
convinced. The youngest, who wouldn't believe anything before seeing it herself, climbed the hundred and ninety-six
steps again to check.

Far below, the harbour was waking up: nets were being mended, engines coughed, and somebody was frying fish.
""",
    "Chinese": """\
清晨的雾还没有散，码头上已经热闹起来。卖鱼的人把昨夜的收获一筐筐抬上岸，孩子们围着看，谁也不愿意先回家吃早饭。\
老人说，他在这里守了四十多年灯塔，见过的船比镇上的人还多。“你们别不信，”他笑着指了指海面，“两条一样灰的船，\
走近了看，神气完全不同。”

2024年，镇里修了新路，游客从全国各地赶来，有人拍照，有人写生，也有人只是坐在石阶上发呆。山不在高，水不在深，\
心安之处便是吾乡。
""",
    "Code": """\
from dataclasses import dataclass


@dataclass(frozen=True)
class Ship:
    name: str
    tons: float = 12.5

    def is_heavy(self, limit: int = 10_000) -> bool:
        # Tons are metric.
        return self.tons > limit or self.name.startswith("MV ")


def heaviest(ships: list[Ship]) -> Ship | None:
    return max(ships, key=lambda ship: ship.tons, default=None)
""",
    "Mixed": """\
| 语言 | greeting | 2025-06-18 |
|---|---|---|
| 日本語 | おはようございます、船長さん。 | ¥3,980 |
| Русский | Доброе утро, капитан! | 3.14159 |
| العربية | صباح الخير يا قبطان | 100% |
| Emoji | 🚢🌊 👩‍🔬 e = mc² | naïve café |
我用 Python 3.12 写了一个 tokenizer，准确率 99.5%（比 baseline 高 2.3 个百分点）。龘靐齉
""",
}
