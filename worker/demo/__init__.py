"""One job on a few servers, shown from queue to result on one machine."""
