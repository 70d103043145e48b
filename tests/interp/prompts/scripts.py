"""Words in many scripts: real ones to train tokenizers on, and made-up ones to try them with."""

from __future__ import annotations

from hypothesis import strategies as st

# Letters of each script, and marks that may follow one.
LETTERS: dict[str, tuple[str, str]] = {
    "Latin": (
        "abcdefghijklmnopqrstuvwxyzABCXYZàâäåæçéèêëíïñóôöøúüßğışőűžłđœĳ",
        "\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}\N{COMBINING CEDILLA}\N{COMBINING LONG SOLIDUS OVERLAY}",
    ),
    "Cyrillic": ("абвгдежзийклмнопрстуфхцчшщъыьэюяАБВЖЯёіїєґўћђ", "\N{COMBINING ACUTE ACCENT}\N{COMBINING BREVE}"),
    "Greek": (
        "αβγδεζηθικλμνξοπρσςτυφχψωΑΒΓΩάέήίόύώϊΐἀὕᾳ",
        "\N{COMBINING ACUTE ACCENT}\N{COMBINING GREEK YPOGEGRAMMENI}",
    ),
    "Arabic": (
        "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئةىپچگیﻻﷺ",
        "\N{ARABIC FATHA}\N{ARABIC SHADDA}\N{ARABIC SUKUN}\N{ARABIC TATWEEL}",
    ),
    "Hebrew": ("אבגדהוזחטיכךלמםנןסעפףצץקרשתשׁ", "\N{HEBREW POINT PATAH}\N{HEBREW POINT DAGESH OR MAPIQ}"),
    "Devanagari": ("अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहक़०१२", "ािीुूेैोौ्ंँ़"),
    "Thai": ("กขคงจฉชซญฎฐณดตถทนบปผพฟภมยรลวศษสหอฮเแโใไๆ๑๒", "ัิีึืุู็่้๊๋์ำะา"),
    "Han": (
        "一丁七万三上下不世中书人今你何作個兩冊別力北千半南去口古好山川日月木林气水火王玉田白石米見言金長雨青食龍𠮷𪚥",
        "",
    ),
    "Kana": (
        "あいうえおかがきくけこさしすせそたちとなにのはばぱひふほまもやよらりるわをんっゃアイカキッャーｱｲ",
        "\u3099",
    ),
    "Hangul": ("가각간갈감강개거고공구국그기나남너노다대도동라로마말무문물미바박밤방백별보부불비사산", "\u1161\u11ab"),
    "emoji": (
        "😀🐕👩👨👧💻🔥☀☂❤✈🇩🇪🇫🇷1#",
        "\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}🏽\N{COMBINING ENCLOSING KEYCAP}",
    ),
}

# Sentences, so that a vocabulary trained on them has whole words, parts of words and parts of characters.
SENTENCES = [
    "The König read a naïve book in the garden; žluťoučký kůň, İstanbul, façade, Ærø, smørrebrød.",
    "Книга лежит на столе, а король читает книгу. Ёлка и їжак.",
    "Το βιβλίο είναι στο τραπέζι και ο βασιλιάς διαβάζει το βιβλίο.",
    "الكتاب على الطاولة والملك يقرأ الكتاب. مَدْرَسَة",
    "הספר על השולחן והמלך קורא את הספר. שָׁלוֹם",
    "किताब मेज़ पर है और राजा किताब पढ़ता है। नमस्ते दुनिया",
    "หนังสืออยู่บนโต๊ะ และกษัตริย์อ่านหนังสือ สวัสดีชาวโลก",
    "书在桌子上，国王在看书。你好世界，今天天气很好。",
    "本は机の上にあります。王様は本を読みます。こんにちは世界 コンピューター",
    "책은 책상 위에 있고 왕은 책을 읽습니다. 안녕하세요 세계",
    "👩\N{ZERO WIDTH JOINER}💻 👍🏽 🇩🇪 🐕 🔥 ☀\N{VARIATION SELECTOR-16}",
] * 4


def words_of(script: str) -> st.SearchStrategy[str]:
    """Made-up words of a script: letters, most of them bare and some with a mark, and now and then a mark in front."""
    letters, marks = LETTERS[script]
    bare = st.sampled_from(letters)
    written = st.one_of(bare, bare, st.builds("".join, st.tuples(bare, st.sampled_from(marks)))) if marks else bare
    words = st.lists(written, min_size=1, max_size=5).map("".join)
    if not marks:
        return words
    return st.one_of(words, words, words, st.builds("".join, st.tuples(st.sampled_from(marks), words)))
