"""Does a circuit hold? Faithfulness, completeness, minimality, leaderboards, reuse."""
