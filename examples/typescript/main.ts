// Dispatch a job through the queue and wait for its end: npm start -- [JOB]
import { createClient } from "redis";

const REQUESTS = "{dispatch}:requests";
const REPLIES = "{dispatch}:replies";

const redis = createClient({ url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0" });

/** Returns the task's exit code. */
async function dispatch(job: string): Promise<number> {
  // Before the request is added: a reply may be quicker than the next read.
  const [newest] = await redis.xRevRange(REPLIES, "+", "-", { COUNT: 1 });
  let last = newest?.id ?? "0";
  const meta = JSON.stringify({ who: "typescript" });
  const id = await redis.xAdd(REQUESTS, "*", { job, payload: "hello", meta });
  for (;;) {
    const read = await redis.xRead({ key: REPLIES, id: last }, { COUNT: 100, BLOCK: 5000 });
    const entries = (read as { messages: { id: string; message: Record<string, string> }[] }[] | null)?.[0];
    for (const { id: entryId, message: reply } of entries?.messages ?? []) {
      last = entryId;
      if (reply.id !== id || reply.stream !== "requests") continue;
      console.log(reply.type, reply.dispatched_job_id ?? "");
      if (reply.final !== "1") continue;
      console.log(reply.verdict, reply.exit_code ?? "", reply.error_message ?? "");
      return reply.verdict === "succeeded" ? 0 : Number(reply.exit_code) || 1;
    }
  }
}

await redis.connect();
try {
  process.exitCode = await dispatch(process.argv[2] ?? "demo-render");
} finally {
  await redis.close();
}
