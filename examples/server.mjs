// A small HTTP server that streams what a model writes, dense or converted:
//
//   node examples/server.mjs <checkpoint> [--port 8080] [--device auto]
//   curl -N localhost:8080/generate -d '{"prompt": "Call me", "maxTokens": 40, "temperature": 0.7}'
//
// The answer comes as server-sent events: {"text": …} for every piece, and {"done": true, "tokens": …, "finishReason": …} at
// the end. Several readers are served at once: their texts take turns at the model, token by token.

import { createServer } from 'node:http';
import { parseArgs } from 'node:util';
import { generate, Model, MolaeError, openDevice, TextStream, Tokenizer } from 'molae';

const USAGE = 'usage: node examples/server.mjs <checkpoint> [--port 8080] [--device auto]';
const { checkpoint, port, deviceName } = readArguments();

const LONGEST_BODY = 1e6;
const device = await openDevice(deviceName).catch(tell);
const [model, tokenizer] = await Promise.all([
  Model.open(checkpoint, { device }),
  Tokenizer.open(checkpoint),
]).catch(tell);

/** Pieces of text as tokens come. */
async function* pieces(prompt, { maxTokens, temperature, topK, topP, minP, seed }, signal) {
  const stream = new TextStream(tokenizer, prompt);
  let tokens = 0;
  let finishReason;
  const onFinish = (reason) => {
    finishReason = reason;
  };
  const options = { maxTokens, temperature, topK, topP, minP, seed, onFinish, signal };
  for await (const token of generate(model, prompt, options)) {
    tokens++;
    const text = stream.add(token);
    if (text !== '') yield { text };
  }
  const rest = stream.end();
  if (rest !== '') yield { text: rest };
  yield { done: true, tokens, finishReason };
}

async function readJson(request) {
  let body = '';
  for await (const chunk of request.setEncoding('utf8')) {
    body += chunk;
    if (body.length > LONGEST_BODY) throw new SyntaxError('The body is too long');
  }
  return JSON.parse(body);
}

async function answer(request, response) {
  const body = await readJson(request);
  if (typeof body?.prompt !== 'string' || body.prompt === '')
    throw new SyntaxError('Expected {"prompt": "…"}');
  const controller = new AbortController();
  response.on('close', () => controller.abort()); // nobody listens any more: stop computing
  // The first piece comes before the head: an error in the arguments is a status, not an event.
  const events = pieces(tokenizer.encodePrompt(body.prompt), body, controller.signal);
  let next = await events.next();
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  for (; !next.done; next = await events.next()) response.write(`data: ${JSON.stringify(next.value)}\n\n`);
  response.end();
}

function fail(response, error) {
  if (error instanceof MolaeError && error.code === 'ABORTED') return response.destroy();
  const wrong =
    error instanceof SyntaxError || (error instanceof MolaeError && error.code === 'INVALID_ARGUMENT');
  if (!wrong) console.error(error);
  const message = { error: wrong ? error.message : 'The server failed', code: error.code ?? null };
  if (response.headersSent) response.end(`data: ${JSON.stringify(message)}\n\n`);
  else
    response
      .writeHead(wrong ? 400 : 500, { 'content-type': 'application/json' })
      .end(JSON.stringify(message));
}

const server = createServer((request, response) => {
  if (request.method === 'POST' && request.url === '/generate') {
    answer(request, response).catch((error) => fail(response, error));
  } else if (request.method === 'GET' && request.url === '/health') {
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify({ model: checkpoint, device: device.info.name }));
  } else {
    response.writeHead(404).end();
  }
});
server.on('error', (error) => stop(`Cannot listen on port ${port}: ${error.code}`, 1));
server.listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}/generate`));
process.once('SIGINT', async () => {
  server.close();
  server.closeAllConnections();
  await model.close();
  device.dispose();
});

function readArguments() {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: { port: { type: 'string', default: '8080' }, device: { type: 'string', default: 'auto' } },
    });
    const [checkpoint, ...others] = positionals;
    if (checkpoint === undefined || others.length > 0) throw new Error('Expected one checkpoint');
    if (!/^\d{1,5}$/.test(values.port) || Number(values.port) > 65535)
      throw new Error(`Expected a port for --port but received ${values.port}`);
    return { checkpoint, port: Number(values.port), deviceName: values.device };
  } catch (error) {
    return stop(`${error.message}\n${USAGE}`, 2);
  }
}

/** What a user can mend is told in a line; a defect keeps its stack. */
function tell(error) {
  if (!(error instanceof MolaeError)) throw error;
  stop(error.message, 1);
}

function stop(message, status) {
  console.error(message);
  process.exit(status);
}
