"""Files of anyone's, read strictly, and files of ours, written so that nothing is lost."""
