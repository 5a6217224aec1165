"""Programs of client libraries, with the settings that `boom_ray/serve/README.md` documents.

Run in the environment of the clients: `python client_programs.py CLIENT URL KEY < texts.json` prints the
vectors of the texts as JSON. The name of the model is `test`.
"""

import json
import os
import sys
from collections.abc import Callable

Vectors = list[list[float]]


def openai(url: str, key: str, texts: list[str]) -> Vectors:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=key)
    assert client.models.retrieve("test").id == "test"
    return [row.embedding for row in client.embeddings.create(model="test", input=texts).data]


def langchain_openai(url: str, key: str, texts: list[str]) -> Vectors:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(
        model="test", base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False
    )
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]


def langchain_huggingface(url: str, key: str, texts: list[str]) -> Vectors:
    from langchain_huggingface import HuggingFaceEndpointEmbeddings

    embeddings = HuggingFaceEndpointEmbeddings(
        model="test", model_kwargs={"model": url}, huggingfacehub_api_token=key
    )
    return [embeddings.embed_query(texts[0]), *embeddings.embed_documents(texts[1:])]


def llama_index_openai(url: str, key: str, texts: list[str]) -> Vectors:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embeddings = OpenAILikeEmbedding(model_name="test", api_base=f"{url}/v1", api_key=key)
    return [embeddings.get_query_embedding(texts[0]), *embeddings.get_text_embedding_batch(texts[1:])]


def llama_index_tei(url: str, key: str, texts: list[str]) -> Vectors:
    from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

    embeddings = TextEmbeddingsInference(model_name="test", base_url=url, auth_token=key)
    return [embeddings.get_query_embedding(texts[0]), *embeddings.get_text_embedding_batch(texts[1:])]


def haystack_openai(url: str, key: str, texts: list[str]) -> Vectors:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options = {"model": "test", "api_base_url": f"{url}/v1", "api_key": Secret.from_token(key)}
    first = OpenAITextEmbedder(**options).run(texts[0])["embedding"]
    documents = [Document(content=text) for text in texts[1:]]
    found = OpenAIDocumentEmbedder(progress_bar=False, **options).run(documents)["documents"]
    return [first, *(document.embedding for document in found)]


def haystack_tei(url: str, key: str, texts: list[str]) -> Vectors:
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder

    embedder = HuggingFaceAPITextEmbedder(
        api_type="text_embeddings_inference", api_params={"url": url}, token=Secret.from_token(key)
    )
    return [embedder.run(text)["embedding"] for text in texts]


def chromadb_openai(url: str, key: str, texts: list[str]) -> Vectors:
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    function = OpenAIEmbeddingFunction(model_name="test", api_base=f"{url}/v1", api_key=key)
    return _in_a_collection(function, texts)


def chromadb_tei(url: str, key: str, texts: list[str]) -> Vectors:
    from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer

    return _in_a_collection(HuggingFaceEmbeddingServer(url=f"{url}/embed", api_key=key), texts)


def _in_a_collection(function: Callable[[list[str]], Vectors], texts: list[str]) -> Vectors:
    import chromadb

    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    ids = [f"{number}" for number in range(len(texts))]
    collection.add(ids=ids, documents=texts)
    assert collection.query(query_texts=texts[1], n_results=1)["ids"] == [["1"]]
    return collection.get(ids=ids, include=["embeddings"])["embeddings"]


def litellm_openai(url: str, key: str, texts: list[str]) -> Vectors:
    from litellm import embedding

    answer = embedding(model="openai/test", api_base=f"{url}/v1", api_key=key, input=texts)
    return [row["embedding"] for row in answer.data]


def litellm_vllm(url: str, key: str, texts: list[str]) -> Vectors:
    from litellm import embedding

    answer = embedding(model="hosted_vllm/test", api_base=f"{url}/v1", api_key=key, input=texts)
    return [row["embedding"] for row in answer.data]


def litellm_tei(url: str, key: str, texts: list[str]) -> Vectors:
    from litellm import embedding

    options = {"api_base": f"{url}/embed", "api_key": key, "input_type": "embed"}
    answer = embedding(model="huggingface/test", input=texts, **options)
    return [row["embedding"] for row in answer.data]


def huggingface_hub(url: str, key: str, texts: list[str]) -> Vectors:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=url, token=key)
    options = {"normalize": True, "truncate": True, "truncation_direction": "right"}
    vectors = client.feature_extraction(texts, **options)
    similar = client.sentence_similarity(texts[0], texts[1:], model=f"{url}/similarity")
    assert abs(vectors[1:] @ vectors[0] - similar).max() < 1e-5
    return vectors.tolist()


CLIENTS = [
    *(openai, langchain_openai, langchain_huggingface, llama_index_openai, llama_index_tei),
    *(haystack_openai, haystack_tei, chromadb_openai, chromadb_tei),
    *(litellm_openai, litellm_vllm, litellm_tei, huggingface_hub),
]

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "0"  # the client of the hub is used for another server
    name, url, key = sys.argv[1:]
    (client,) = [client for client in CLIENTS if client.__name__ == name]
    vectors = client(url, key, json.load(sys.stdin))
    print(json.dumps([[float(number) for number in vector] for vector in vectors]))
