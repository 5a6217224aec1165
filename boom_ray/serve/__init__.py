"""Online serving of model directories with Ray Serve, in the shape of OpenAI's embeddings API."""
