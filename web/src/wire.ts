/** The events of docs/PROTOCOL.md, as far as the page reads them. */

/** What the model was given. */
export interface ContextReport {
  messages_sent: number;
  messages_dropped: number;
  prompt_tokens: number;
  num_ctx: number;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

/** One continuation of an answer after it broke off. */
export interface Continuation {
  how: "exact" | "approximate" | "restarted";
  why: string;
}

/** The alternatives of a message, itself among them: this one is the one at `index`, from 0. */
export interface Siblings {
  index: number;
  count: number;
  ids: string[];
}

/** A message as it is stored. */
export interface StoredMessage {
  id: string;
  role: string;
  content: string;
  timestamp: string;
  thinking?: string;
  generation_id?: string;
  model?: string;
  status?: "complete" | "cancelled" | "failed";
  finish_reason?: string;
  usage?: Usage;
  context?: ContextReport;
  continued?: Continuation[];
  error?: { code?: string; message?: string };
  siblings?: Siblings;
  images?: { digest: string; bytes: number; media_type: string }[];
}

interface Common {
  cursor?: string;
  generation_id?: string;
}

export type ServerEvent = Common &
  (
    | { type: "connection"; session_id: string; resumed: boolean; recovered: boolean }
    | {
        type: "message_received";
        message: string;
        timestamp: string;
        message_id?: string;
        /** The answer beside which another one is generated. */
        regenerated?: string;
        /** The question in whose place this one is asked. */
        edited?: string;
      }
    | { type: "branch_selected"; message_id: string }
    | { type: "queued"; position: number; eta_seconds: number | null }
    | { type: "stream_start"; model: string }
    | { type: "stream_thinking"; content: string; offset: number }
    | { type: "stream_chunk"; content: string; done: boolean; offset?: number }
    | { type: "stream_restart"; from: number }
    | {
        type: "stream_end";
        full_response: string;
        timestamp: string;
        finish_reason: string;
        usage?: Usage;
        context?: ContextReport;
        continued?: Continuation[];
      }
    | {
        type: "response";
        content: string;
        thinking?: string;
        model: string;
        timestamp: string;
        finish_reason: string;
        usage?: Usage;
        context?: ContextReport;
        continued?: Continuation[];
      }
    | { type: "cancelled"; full_response: string }
    | {
        type: "error";
        message: string;
        code: string;
        retryable: boolean;
        retry_after?: number;
        message_id?: string;
      }
    | {
        type: "history";
        messages: StoredMessage[];
        count: number;
        has_more: boolean;
        answer?: { generation_id: string; thinking?: string; content: string; offset: number };
        /** The identifier of the request that it replies to; absent in one that comes unrequested. */
        message_id?: string;
      }
    | { type: "history_cleared"; session_id: string }
    | { type: "pong" }
    | { type: "auth_expiring"; expires_at: string }
    | { type: "authenticated"; expires_at: string | null }
  );

/** An error of the service: a problem document, or an `error` event. */
export interface Failure {
  code: string;
  message: string;
  retryable: boolean;
  /** When to retry, in milliseconds since 1970. */
  retryAt?: number;
}
