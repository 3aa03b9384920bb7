"""The built-in domain: coloured shapes whose pictures can be judged exactly. See captions.py for its language."""
