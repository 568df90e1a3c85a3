"""A client that has nothing of ours: gRPC of another language, and the schema as the node tells it by reflection.

usage: client.py ADDRESS CA CERT KEY TENANT STUDY SERIES INSTANCE OUTPUT
Prints what it learned, one fact per line, and writes the content it read to OUTPUT.
"""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

# The messages of grpc.reflection.v1 are those of v1alpha under another name.
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


def channel_to(address, ca, cert, key):
    read = lambda path: open(path, "rb").read()
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    return grpc.secure_channel(address, credentials)


def reflect(channel, **question):
    call = channel.stream_stream(
        REFLECTION,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return next(call(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=10))


def schema_of(channel, symbol):
    pool, todo, met = descriptor_pool.DescriptorPool(), [("file_containing_symbol", symbol)], {}
    while todo:
        kind, name = todo.pop()
        for encoded in reflect(channel, **{kind: name}).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(encoded)
            if file.name not in met:
                met[file.name] = file
                todo += [("file_by_filename", needed) for needed in file.dependency if needed not in met]

    def add(name):
        for needed in met[name].dependency:
            if needed in met:
                add(needed)
        try:
            pool.FindFileByName(name)
        except KeyError:
            pool.Add(met[name])

    for name in list(met):
        add(name)
    return pool


def main():
    address, ca, cert, key, tenant, study, series, instance, output = sys.argv[1:]
    channel = channel_to(address, ca, cert, key)
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    print("health", health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))
    services = sorted(s.name for s in reflect(channel, list_services="").list_services_response.service)
    print("services", " ".join(services))

    pool = schema_of(channel, "pacsvault.v1.Archive")
    message = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName("pacsvault.v1." + name))
    method = lambda kind, name, request, reply: getattr(channel, kind)(
        f"/pacsvault.v1.Archive/{name}",
        request_serializer=message(request).SerializeToString,
        response_deserializer=message(reply).FromString,
    )
    wanted = message("ObjectKey")(tenant=tenant, study=study)
    wanted.instance.series, wanted.instance.instance = series, instance
    listed = method("unary_unary", "List", "ListRequest", "ListReply")(
        message("ListRequest")(tenant=tenant, study=study), timeout=10
    )
    print("listed", len(listed.stored))
    with open(output, "wb") as file:
        for reply in method("unary_stream", "Get", "GetRequest", "GetReply")(
            message("GetRequest")(key=wanted), timeout=60
        ):
            file.write(reply.data)
            if reply.HasField("header"):
                print("announced", reply.header.len_bytes)

    wanted.instance.instance = "1.2.3.404"
    try:
        method("unary_unary", "Head", "HeadRequest", "HeadReply")(message("HeadRequest")(key=wanted), timeout=10)
    except grpc.RpcError as error:
        print("missing", error.code().name, error.details())


main()
