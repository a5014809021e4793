"""English function words, which cannot be the last word of a LAMBADA passage: the closed classes of the language.

The paper says that it used a stop-word filter, not which words; whoever repeated it took a list such as this one
(pronouns, determiners, prepositions, conjunctions, auxiliaries, and what contractions leave).
"""

_WORDS = """
i me my myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves one
a an the this that these those some any each every either neither both all few more most other such no nor not only
own same so than too very just
who whom whose which what when where why how whether
and but or if because as until while though although since unless
of at by for with about against between among into through during before after above below to from up down in out on
off over under again further then once here there
am is are was were be been being have has had having do does did doing will would shall should can could may might
must ought
s t d m o y ll re ve ain aren couldn didn doesn don hadn hasn haven isn mightn mustn needn shan shouldn wasn weren
won wouldn
"""

STOP_WORDS = frozenset(_WORDS.split())
