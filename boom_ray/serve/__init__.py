"""Online serving of a model directory, in the shape of OpenAI's embeddings API."""
