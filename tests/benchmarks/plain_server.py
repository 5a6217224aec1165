"""The server that a user would write: sentence-transformers behind FastAPI, one request after the other.

python -m tests.benchmarks.plain_server MODEL PORT DEVICE DTYPE
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """A request of OpenAI's API."""

    input: list[str]
    model: str = ""


def build(directory: str, device: str, dtype: str) -> FastAPI:
    """An application with the route of OpenAI's API."""
    model = SentenceTransformer(directory, device=device, model_kwargs={"dtype": dtype})
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, Any]:
        vectors = model.encode(body.input, normalize_embeddings=True)
        data = [{"index": index, "embedding": vector.tolist()} for index, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": body.model}

    return app


if __name__ == "__main__":
    directory, port, device, dtype = sys.argv[1:]
    uvicorn.run(build(directory, device, dtype), port=int(port), log_level="warning")
