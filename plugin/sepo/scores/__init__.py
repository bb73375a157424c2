"""Score stores for people: what `sepo score` says at its end, and `sepo scores ls | show | verify | export | rm`."""
