"""What tests share: models, servers, bodies and clients made for them. No test lies here."""
