"""Other servers of the same graph, as their users would write them. All have the requests and answers of `/predict`."""
