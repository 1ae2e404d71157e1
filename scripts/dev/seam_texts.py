"""What `make seams` asks, by script. A model as small as this one writes foreign scripts only where it copies them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    name: str
    questions: list[str]
    # Whether an answer contains what it is asked for.
    is_in: Callable[[str], bool]
    # Whether a break right after this character is of the kind that half of the breaks are to be.
    is_awkward: Callable[[str], bool]


def _not_ascii(character: str) -> bool:
    return not character.isascii()


def _mark(character: str) -> bool:
    """A quote, a bracket, a pipe, a line break: anything but a letter, a digit or a space."""
    return not character.isalnum() and character != " "


def _contains(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda answer: compiled.search(answer) is not None


def _copies(*texts: str) -> list[str]:
    leads = ("Repeat this text: {}", "Copy this text:\n\n{}")
    return [lead.format(text) for lead, text in itertools.product(leads, texts)]


def _table(*rows: str) -> str:
    header, *others = (f"| {row} |" for row in rows)
    return "\n".join([header, "|---" * (header.count("|") - 1) + "|", *others])


_AGAIN = "Write this Markdown table again:\n\n{}"
_ROW = "Add a row to this Markdown table:\n\n{}"
_ASK = (
    "Write a short story about {}.",
    "Explain {} to a child.",
    "List five facts about {}.",
    "Give advice to somebody who is new to {}.",
    "Write a dialogue between two people about {}.",
)
_ABOUT = ("the sea", "bread", "trains", "mathematics", "bees")

SCRIPTS = [
    Script(
        "English",
        [ask.format(about) for about, ask in itertools.product(_ABOUT, _ASK)],
        _contains("[A-Za-z]{3}"),
        _mark,
    ),
    Script(
        "French",
        _copies(
            "Élève français, il était déjà très fatigué. Noël à la forêt, où les garçons goûtent un gâteau.",
            "La façade du théâtre a été réparée. Où êtes-vous allés cet été ? À la crémerie, près du château.",
            "Le maçon a reçu une leçon. Ça va être agréable : la sœur aînée préfère le thé glacé sur l'île.",
            "Le garçon a mangé des crêpes brûlées. Après la fête, la fenêtre était fermée et le café épuisé.",
            "L'été dernier, François a dîné à l'hôtel. Il a commandé un pâté, des légumes sautés et de la crème.",
        ),
        _contains("[À-ÿœ]"),
        _not_ascii,
    ),
    Script(
        "Spanish",
        _copies(
            "El niño pequeño comió piñas en la montaña. Mañana iré a España con mi compañera María.",
            "La canción más rápida sonó en el jardín. ¿Cuándo llegará el señor Núñez? Él dirá que sí.",
            "El café está frío. Mi corazón late rápido cuando veo el océano y el árbol de la niñez.",
            "Ayer cené con mi mamá y mi tía. Compré limón, azúcar, plátano y un pequeño melón.",
            "¿Dónde está el baño? Está allí, detrás del balcón. ¡Qué día tan difícil, señor capitán!",
        ),
        _contains("[À-ÿ¿¡]"),
        _not_ascii,
    ),
    Script(
        "Chinese",
        _copies(
            "今天天气很好，我们去公园散步。孩子们在草地上玩耍，老人在树下喝茶。",
            "北京是中国的首都。这里有很多历史悠久的建筑，每年有很多游客来参观。",
            "我喜欢学习中文，因为汉字很有意思。你呢？你喜欢吃米饭还是面条？",
            "昨天晚上下雨了，路上有很多水。我坐公共汽车去学校，见到了老师。",
            "妈妈在厨房做饭，爸爸看报纸，弟弟听音乐，小猫在窗边睡觉。",
        ),
        _contains("[\u4e00-\u9fff]"),
        _not_ascii,
    ),
    Script(
        "Japanese",
        _copies(
            "今日は天気がいいです。公園で子供たちが遊んでいます。私はお茶を飲みます。",
            "東京は日本の首都です。電車でどこへでも行けます。カタカナを勉強しましょう。",
            "私の猫は白いです。毎朝、魚を食べて、窓の外を見ています。がんばってください！",
            "昨日、友だちとラーメンを食べました。とてもおいしかったです。",
            "春になると桜が咲きます。みんなでお花見に行って、写真を撮ります。",
        ),
        _contains("[\u3040-\u30ff]"),
        _not_ascii,
    ),
    Script(
        "Arabic",
        _copies(
            "اليوم الطقس جميل. ذهبنا إلى الحديقة مع الأطفال وشربنا الشاي تحت الشجرة.",
            "القاهرة مدينة كبيرة في مصر. يعيش فيها ملايين الناس، ويزورها السياح كل عام.",
            "أحب القراءة والكتابة. هل تحب القهوة أم الشاي؟ نعم، أحب القهوة.",
            "في المدرسة كتاب وقلم. قال المعلم: اقرأ الدرس الأول.",
            "البحر أزرق والسماء صافية. نأكل السمك ونلعب على الشاطئ.",
        ),
        _contains("[\u0620-\u064a]"),
        _not_ascii,
    ),
    Script(
        "Hindi",
        _copies(
            "आज मौसम बहुत अच्छा है। हम बच्चों के साथ बगीचे में गए।",
            "दिल्ली भारत की राजधानी है। यहाँ बहुत से लोग रहते हैं।",
            "मुझे किताबें पढ़ना पसंद है। क्या आप हिंदी बोलते हैं?",
            "सुबह सूरज निकलता है। पक्षी गाते हैं और फूल खिलते हैं।",
            "मेरी माँ खाना बनाती है। हम सब मिलकर चाय पीते हैं।",
        ),
        _contains("[\u0900-\u097f]"),
        _not_ascii,
    ),
    Script(
        "emoji",
        _copies(
            "👩‍👩‍👧 family 🏳️‍🌈 flag 🇫🇷🇩🇪 👍🏽 ok 1️⃣ 2️⃣ ❤️ 🎉🎉 🚀",
            "Party 🎉 cake 🎂 love ❤️ star ⭐ sun ☀️ rain 🌧️ run 🏃‍♀️ fire 🔥",
            "🇯🇵 Japan 🇪🇸 Spain 🇮🇳 India 👋🏿 hello 🧑‍🚀 space 😀😃😄",
            "😀 happy 😢 sad 👍🏻 yes 👎🏾 no 👨‍👩‍👦 parents 🐝 bee 🌍 world",
            "1️⃣ milk 🥛 2️⃣ bread 🍞 3️⃣ apple 🍎 4️⃣ fish 🐟 done ✅",
        ),
        _contains("[\u2600-\u27bf\U0001f000-\U0001faff]"),
        _not_ascii,
    ),
    Script(
        "code",
        [
            "Write a Python function that adds two numbers, with a test.",
            "Write a JavaScript function that reverses a string.",
            "Write a C program that prints the numbers from 1 to 10.",
            "Write a Rust function that returns the largest of three numbers.",
            "Write an HTML page with a title, a paragraph and a list.",
            'Repeat this code:\n```python\ndef add(a, b):\n    return {"x": [1, 2, 3], \'y\': a + b}\n```',
            'Repeat this code:\n```sh\nfor f in *.txt; do\n\techo "$f" | tr a-z A-Z\ndone\n```',
        ],
        _contains(r"```|\w\(|[{};<>]"),
        _mark,
    ),
    Script(
        "tables",
        [
            _AGAIN.format(_table("Name | Age | City", "Ann | 31 | Paris", "Bob | 27 | Rome")),
            _AGAIN.format(_table("Name | Job | City", "Ann | nurse | Paris", "Bob | pilot | Rome")),
            _AGAIN.format(_table("Word | Length", "sea | 3", "bread | 5")),
            _AGAIN.format(_table("Animal | Legs", "Dog | 4", "Bird | 2", "Fish | 0")),
            _AGAIN.format(_table("Item | Colour | Size", "Apple | red | small", "Melon | green | large")),
            _AGAIN.format(_table("Country | Capital", "France | Paris", "Spain | Madrid")),
            _ROW.format(_table("Name | Age | Town", "Eve | 45 | Bern", "Tom | 19 | Oslo")),
            _ROW.format(_table("Word | Length", "sea | 3", "bread | 5")),
            _ROW.format(_table("Animal | Legs", "Dog | 4", "Bird | 2", "Fish | 0")),
            _ROW.format(_table("Item | Colour | Size", "Apple | red | small", "Melon | green | large")),
        ],
        _contains(r"\|.*\|"),
        _mark,
    ),
]
