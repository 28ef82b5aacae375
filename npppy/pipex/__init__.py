"""pipex: who carries the data of established sessions."""
