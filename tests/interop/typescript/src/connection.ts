// A connection as an application would make it: credential, TLS, retries, and a deadline for every call.

import { readFileSync } from "node:fs";

import {
  type CallOptions,
  Client,
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  InterceptingCall,
  type Interceptor,
  Metadata,
  type ServiceError,
} from "@grpc/grpc-js";

import { AdminServiceClient } from "./stubs/recall/v1/admin.js";
import { MemoryServiceClient } from "./stubs/recall/v1/memory.js";
import { SessionServiceClient } from "./stubs/recall/v1/session.js";
import { UserServiceClient } from "./stubs/recall/v1/user.js";

const DEADLINE_MS = 10_000;

export type Recalld = ReturnType<typeof connect>;

/** The four services on one channel, as the environment describes it; it connects with the first call. */
export function connect() {
  const target = required("RECALLD_TARGET");
  const caFile = process.env.RECALLD_CA_FILE;
  const channel = caFile ? credentials.createSsl(readFileSync(caFile)) : credentials.createInsecure();
  const options = {
    "grpc.service_config": readFileSync(required("RECALLD_SERVICE_CONFIG"), "utf8"),
    interceptors: [everyCall(process.env.RECALLD_API_KEY)],
  };
  const sessions = new SessionServiceClient(target, channel, options);
  const shared = { ...options, channelOverride: sessions.getChannel() };
  return {
    sessions,
    memory: new MemoryServiceClient(target, channel, shared),
    users: new UserServiceClient(target, channel, shared),
    admin: new AdminServiceClient(target, channel, shared),
    close: () => sessions.close(),
  };
}

/** Sends the credential with every call, and sees to it that every call has a deadline. */
function everyCall(apiKey: string | undefined): Interceptor {
  return (options, nextCall) =>
    new InterceptingCall(nextCall({ ...options, deadline: options.deadline ?? Date.now() + DEADLINE_MS }), {
      start(metadata, listener, next) {
        if (apiKey) {
          metadata.set("authorization", `Bearer ${apiKey}`);
        }
        next(metadata, listener);
      },
    });
}

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: CallOptions,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** A unary call as a promise, which is rejected with the ServiceError: `await unary(memory, memory.addMemory, …)`. */
export function unary<Request, Response>(
  client: Client,
  method: Unary<Request, Response>,
  request: Request,
  options: CallOptions = {},
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method.call(client, request, new Metadata(), options, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

/** The responses of a streaming call, with their type. Leaving the loop early ends the call at the server, too. */
export async function* responses<Response>(call: ClientReadableStream<Response>): AsyncGenerator<Response> {
  try {
    yield* call;
  } finally {
    call.cancel();
  }
}

function required(name: string): string {
  const value = process.env[name];
  if (!value) {
    throw new Error(`${name} is not set`);
  }
  return value;
}
