"""From what a model says of each moment to text with times: decoding, alignment, and the formats of transcripts.

It knows no model: emissions and plain vocabulary lists come in. `vocabulary` names the tokens, `ctc` decodes, `language_model`
scores words, `align` finds the times of a known text, `transcript` is the result and its formats, `seq2seq` searches step by
step.
"""
