"""Makes a graph stream: a state goes in with the next steps, and out with the answer to the sequence so far.

    whole graph       Answers a whole sequence. It takes lengths or a mask, and padding reaches no answer.
    streaming graph   Answers a *chunk*, the next steps of a sequence, as the whole graph answers all its steps so far.

`stream.py` is the way through a graph, `rules.py` has a rule for each operator that mixes steps, `carried.py` what they
share, and `proof.py` compares chunks with the whole. The words are those of `mending/values.py`, and these:

    state             What a row carries from chunk to chunk: an input NAME of the graph, and its output NAME_next.
    total             Of a row, the number of steps of its sequence so far; those of the chunk are its *own steps*.
    of the whole      A value without an axis of time that depends on all steps so far, such as a mean. It changes with
                      each chunk, so no value at a step may be computed from it: those of earlier chunks would change.
    share             A value with an axis of time that is divided by a value of the whole, as attention weights are. At
                      the steps of earlier chunks it changes by one factor only, its *rescale*.
    look ahead        How many later steps a value at a step depends on.
"""
