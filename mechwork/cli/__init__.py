"""The command line: a parser and one small file per verb. The only place of mechwork that prints.

Imports anything, and is imported by nothing; what is heavy is imported inside a verb, so that help is instant.

    mechwork discover ioi --model gpt2-6l --rules relp --out reports/ioi
"""

from .entry import main as main
