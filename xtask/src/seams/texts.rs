//! The questions of `make seams`, by script. A model as small as this one writes foreign scripts
//! only where it copies them.

/// A script and questions whose answers are in it.
pub struct Script {
    /// The name in the table.
    pub name: &'static str,
    /// Texts that the model has to copy.
    copied: &'static [&'static str],
    /// Whole questions.
    asked: &'static [&'static str],
    /// Returns whether an answer contains the script.
    pub is_in: fn(&str) -> bool,
    /// Returns whether a break right after this character is an awkward one, as half of the breaks
    /// should be.
    pub is_awkward: fn(char) -> bool,
}

const COPY: [&str; 2] = ["Repeat this text: ", "Copy this text:\n\n"];
const TOPICS: [&str; 5] = ["the sea", "bread", "trains", "mathematics", "bees"];

impl Script {
    /// Returns all questions.
    pub fn questions(&self) -> Vec<String> {
        let copies = COPY
            .iter()
            .flat_map(|lead| self.copied.iter().map(move |text| format!("{lead}{text}")));
        // A question with a gap becomes one for each topic.
        let about = |question: &&'static str| {
            let topics = if question.contains("{}") { &TOPICS[..] } else { &TOPICS[..1] };
            let question = (*question).to_owned();
            topics.iter().map(move |topic| question.replace("{}", topic)).collect::<Vec<_>>()
        };
        copies.chain(self.asked.iter().flat_map(about)).collect()
    }
}

fn not_ascii(character: char) -> bool {
    !character.is_ascii()
}

/// Returns whether the character is a quote, a bracket, a pipe, a line break: anything but a
/// letter, a digit or a space.
fn mark(character: char) -> bool {
    !character.is_alphanumeric() && character != ' '
}

/// Returns whether a text looks like code.
fn code(text: &str) -> bool {
    let call = |pair: &[char]| pair[1] == '(' && (pair[0].is_alphanumeric() || pair[0] == '_');
    text.contains("```")
        || text.contains(['{', '}', ';', '<', '>'])
        || text.chars().collect::<Vec<_>>().windows(2).any(call)
}

/// Returns every script.
pub const SCRIPTS: [Script; 10] = [
    Script {
        name: "English",
        copied: &[],
        asked: &[
            "Write a short story about {}.",
            "Explain {} to a child.",
            "List five facts about {}.",
            "Give advice to somebody who is new to {}.",
            "Write a dialogue between two people about {}.",
        ],
        is_in: |text| text.split(|c: char| !c.is_ascii_alphabetic()).any(|word| word.len() >= 3),
        is_awkward: mark,
    },
    Script {
        name: "French",
        copied: &[
            "Élève français, il était déjà très fatigué. Noël à la forêt, où les garçons goûtent un gâteau.",
            "La façade du théâtre a été réparée. Où êtes-vous allés cet été ? À la crémerie, près du château.",
            "Le maçon a reçu une leçon. Ça va être agréable : la sœur aînée préfère le thé glacé sur l'île.",
            "Le garçon a mangé des crêpes brûlées. Après la fête, la fenêtre était fermée et le café épuisé.",
            "L'été dernier, François a dîné à l'hôtel. Il a commandé un pâté, des légumes sautés et de la crème.",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, 'À'..='ÿ' | 'œ')),
        is_awkward: not_ascii,
    },
    Script {
        name: "Spanish",
        copied: &[
            "El niño pequeño comió piñas en la montaña. Mañana iré a España con mi compañera María.",
            "La canción más rápida sonó en el jardín. ¿Cuándo llegará el señor Núñez? Él dirá que sí.",
            "El café está frío. Mi corazón late rápido cuando veo el océano y el árbol de la niñez.",
            "Ayer cené con mi mamá y mi tía. Compré limón, azúcar, plátano y un pequeño melón.",
            "¿Dónde está el baño? Está allí, detrás del balcón. ¡Qué día tan difícil, señor capitán!",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, 'À'..='ÿ' | '¿' | '¡')),
        is_awkward: not_ascii,
    },
    Script {
        name: "Chinese",
        copied: &[
            "今天天气很好，我们去公园散步。孩子们在草地上玩耍，老人在树下喝茶。",
            "北京是中国的首都。这里有很多历史悠久的建筑，每年有很多游客来参观。",
            "我喜欢学习中文，因为汉字很有意思。你呢？你喜欢吃米饭还是面条？",
            "昨天晚上下雨了，路上有很多水。我坐公共汽车去学校，见到了老师。",
            "妈妈在厨房做饭，爸爸看报纸，弟弟听音乐，小猫在窗边睡觉。",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, '\u{4e00}'..='\u{9fff}')),
        is_awkward: not_ascii,
    },
    Script {
        name: "Japanese",
        copied: &[
            "今日は天気がいいです。公園で子供たちが遊んでいます。私はお茶を飲みます。",
            "東京は日本の首都です。電車でどこへでも行けます。カタカナを勉強しましょう。",
            "私の猫は白いです。毎朝、魚を食べて、窓の外を見ています。がんばってください！",
            "昨日、友だちとラーメンを食べました。とてもおいしかったです。",
            "春になると桜が咲きます。みんなでお花見に行って、写真を撮ります。",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, '\u{3040}'..='\u{30ff}')),
        is_awkward: not_ascii,
    },
    Script {
        name: "Arabic",
        copied: &[
            "اليوم الطقس جميل. ذهبنا إلى الحديقة مع الأطفال وشربنا الشاي تحت الشجرة.",
            "القاهرة مدينة كبيرة في مصر. يعيش فيها ملايين الناس، ويزورها السياح كل عام.",
            "أحب القراءة والكتابة. هل تحب القهوة أم الشاي؟ نعم، أحب القهوة.",
            "في المدرسة كتاب وقلم. قال المعلم: اقرأ الدرس الأول.",
            "البحر أزرق والسماء صافية. نأكل السمك ونلعب على الشاطئ.",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, '\u{620}'..='\u{64a}')),
        is_awkward: not_ascii,
    },
    Script {
        name: "Hindi",
        copied: &[
            "आज मौसम बहुत अच्छा है। हम बच्चों के साथ बगीचे में गए।",
            "दिल्ली भारत की राजधानी है। यहाँ बहुत से लोग रहते हैं।",
            "मुझे किताबें पढ़ना पसंद है। क्या आप हिंदी बोलते हैं?",
            "सुबह सूरज निकलता है। पक्षी गाते हैं और फूल खिलते हैं।",
            "मेरी माँ खाना बनाती है। हम सब मिलकर चाय पीते हैं।",
        ],
        asked: &[],
        is_in: |text| text.contains(|c| matches!(c, '\u{900}'..='\u{97f}')),
        is_awkward: not_ascii,
    },
    Script {
        name: "emoji",
        copied: &[
            "👩‍👩‍👧 family 🏳️‍🌈 flag 🇫🇷🇩🇪 👍🏽 ok 1️⃣ 2️⃣ ❤️ 🎉🎉 🚀",
            "Party 🎉 cake 🎂 love ❤️ star ⭐ sun ☀️ rain 🌧️ run 🏃‍♀️ fire 🔥",
            "🇯🇵 Japan 🇪🇸 Spain 🇮🇳 India 👋🏿 hello 🧑‍🚀 space 😀😃😄",
            "😀 happy 😢 sad 👍🏻 yes 👎🏾 no 👨‍👩‍👦 parents 🐝 bee 🌍 world",
            "1️⃣ milk 🥛 2️⃣ bread 🍞 3️⃣ apple 🍎 4️⃣ fish 🐟 done ✅",
        ],
        asked: &[],
        is_in: |text| {
            text.contains(|c| matches!(c, '\u{2600}'..='\u{27bf}' | '\u{1f000}'..='\u{1faff}'))
        },
        is_awkward: not_ascii,
    },
    Script {
        name: "code",
        copied: &[],
        asked: &[
            "Write a Python function that adds two numbers, with a test.",
            "Write a JavaScript function that reverses a string.",
            "Write a C program that prints the numbers from 1 to 10.",
            "Write a Rust function that returns the largest of three numbers.",
            "Write an HTML page with a title, a paragraph and a list.",
            "Repeat this code:\n```python\ndef add(a, b):\n    return {\"x\": [1, 2, 3], 'y': a + b}\n```",
            "Repeat this code:\n```sh\nfor f in *.txt; do\n\techo \"$f\" | tr a-z A-Z\ndone\n```",
        ],
        is_in: code,
        is_awkward: mark,
    },
    Script {
        name: "tables",
        copied: &[],
        asked: &[
            "Write this Markdown table again:\n\n| Name | Age | City |\n|---|---|---|\n| Ann | 31 | Paris |\n| Bob | 27 | Rome |",
            "Write this Markdown table again:\n\n| Name | Job | City |\n|---|---|---|\n| Ann | nurse | Paris |\n| Bob | pilot | Rome |",
            "Write this Markdown table again:\n\n| Word | Length |\n|---|---|\n| sea | 3 |\n| bread | 5 |",
            "Write this Markdown table again:\n\n| Animal | Legs |\n|---|---|\n| Dog | 4 |\n| Bird | 2 |\n| Fish | 0 |",
            "Write this Markdown table again:\n\n| Item | Colour | Size |\n|---|---|---|\n| Apple | red | small |\n| Melon | green | large |",
            "Write this Markdown table again:\n\n| Country | Capital |\n|---|---|\n| France | Paris |\n| Spain | Madrid |",
            "Add a row to this Markdown table:\n\n| Name | Age | Town |\n|---|---|---|\n| Eve | 45 | Bern |\n| Tom | 19 | Oslo |",
            "Add a row to this Markdown table:\n\n| Word | Length |\n|---|---|\n| sea | 3 |\n| bread | 5 |",
            "Add a row to this Markdown table:\n\n| Animal | Legs |\n|---|---|\n| Dog | 4 |\n| Bird | 2 |\n| Fish | 0 |",
            "Add a row to this Markdown table:\n\n| Item | Colour | Size |\n|---|---|---|\n| Apple | red | small |\n| Melon | green | large |",
        ],
        is_in: |text| text.lines().any(|line| line.matches('|').count() >= 2),
        is_awkward: mark,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_has_questions_and_knows_its_own_texts() {
        for script in &SCRIPTS {
            assert!(script.questions().len() >= 7, "{}", script.name);
            assert!(script.questions().iter().all(|question| !question.contains("{}")));
            assert!(script.copied.iter().all(|text| (script.is_in)(text)), "{}", script.name);
        }
        assert_eq!(SCRIPTS[0].questions().len(), 25);
    }
}
