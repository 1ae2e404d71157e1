/** The two dialogs: what the next answer is made with, and who asks. */

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { duration, sentence } from "./advice";
import * as api from "./api";
import { saveAll } from "./files";
import { Icon } from "./icons";
import * as sessions from "./sessions";
import { DEFAULTS, settings, theme } from "./settings";
import type { Settings, Theme } from "./settings";

type Name = "settings" | "account";

const shown = signal<Name | "">("");

export function openDialog(name: Name): void {
  shown.value = name;
}

const models = signal<api.Model[]>([]);
/** The model that answers where none was chosen; empty until the service has said it. */
const defaultModel = signal("");
const modelTrouble = signal("");

/** Whether the models were read. */
export const knowsModels = () => models.peek().length > 0;

/** Reads the models that the hosts have. */
export async function readModels(): Promise<void> {
  try {
    const { models: all, default: usual = "" } = await api.models();
    models.value = all;
    defaultModel.value = usual;
    modelTrouble.value = "";
  } catch (error) {
    if (error instanceof api.ApiError) modelTrouble.value = sentence(error.failure.message);
  }
}

export function Dialogs() {
  return (
    <>
      {shown.value === "settings" && <SettingsDialog />}
      {shown.value === "account" && <AccountDialog />}
    </>
  );
}

function Dialog({ title, children }: { title: string; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const focused = document.activeElement;
    const element = dialog.current;
    element?.showModal();
    return () => {
      element?.close();
      if (focused instanceof HTMLElement) focused.focus();
    };
  }, []);
  return (
    <dialog
      ref={dialog}
      aria-labelledby="dialog-title"
      onClose={() => (shown.value = "")}
      onClick={(event) => {
        if (event.target === dialog.current) dialog.current?.close();
      }}
    >
      <div class="sheet">
        <div class="top">
          <h2 id="dialog-title">{title}</h2>
          <button type="button" class="quiet" onClick={() => dialog.current?.close()}>
            <Icon name="close" />
            <span class="hidden">Close</span>
          </button>
        </div>
        {children}
      </div>
    </dialog>
  );
}

const LENGTHS: [number, string][] = [
  [300, "Short"],
  [1000, "Usual"],
  [4000, "Long"],
  [-1, "As long as the model can"],
];
const THINKING: [Settings["think"], string][] = [
  ["", "Off"],
  ["low", "A little"],
  ["medium", "Some"],
  ["high", "A lot"],
];
const THEMES: [Theme, string][] = [
  ["system", "As the system"],
  ["light", "Light"],
  ["dark", "Dark"],
];

const short = (model: string) => model.replace(/:latest$/, "");

/** Whether the model of the next answers takes images, as far as is known. */
export function takesImages(): boolean {
  const name = short(settings.value.model || defaultModel.value);
  return models.value.find((model) => short(model.name) === name)?.images !== false;
}

/** Chooses the model of the next answers. */
export function ModelChoice({ class: name, label }: { class?: string; label: string }) {
  const { model } = settings.value;
  const { value: usual } = defaultModel;
  const names = models.value.map(({ name }) => name).filter((name) => name !== usual || name === model);
  if (model && !names.includes(model)) names.unshift(model);
  return (
    <select
      class={name}
      aria-label={label}
      title={label}
      value={model}
      onPointerDown={() => void readModels()}
      onFocus={() => void readModels()}
      onChange={(event) => (settings.value = { ...settings.peek(), model: event.currentTarget.value })}
    >
      <option value="">{usual ? `${short(usual)} (default)` : "Default model"}</option>
      {names.map((name) => (
        <option key={name} value={name}>
          {short(name)}
        </option>
      ))}
    </select>
  );
}

function SettingsDialog() {
  const { temperature, system, maxTokens, think } = settings.value;
  const set = (change: Partial<Settings>) => {
    settings.value = { ...settings.peek(), ...change };
  };
  useEffect(() => void readModels(), []);
  return (
    <Dialog title="Settings">
      <p class="hint">They hold from the next message on, in every conversation of this browser.</p>
      <label class="row">
        <span>Model</span>
        <ModelChoice label="Model" />
      </label>
      {modelTrouble.value && <p class="trouble">{modelTrouble.value}</p>}
      <label class="row">
        <span>
          Temperature <output>{temperature.toFixed(1)}</output>
        </span>
        <input
          type="range"
          min="0"
          max="2"
          step="0.1"
          value={temperature}
          onInput={(event) => set({ temperature: Number(event.currentTarget.value) })}
        />
        <span class="ends" aria-hidden="true">
          <span>exact</span>
          <span>inventive</span>
        </span>
      </label>
      <Choice
        label="Length of an answer"
        options={LENGTHS}
        value={maxTokens}
        change={(value) => set({ maxTokens: value })}
      />
      <Choice
        label="Reasoning, where the model can"
        options={THINKING}
        value={think}
        change={(value) => set({ think: value })}
      />
      <label class="row">
        <span>Instructions for the model</span>
        <textarea
          rows={4}
          dir="auto"
          maxLength={32_768}
          placeholder="Answer briefly, in French."
          value={system}
          onInput={(event) => set({ system: event.currentTarget.value })}
        />
      </label>
      <Choice
        label="Appearance"
        options={THEMES}
        value={theme.value}
        change={(value) => (theme.value = value)}
      />
      <button type="button" onClick={() => (settings.value = DEFAULTS)}>
        Reset all but the appearance
      </button>
    </Dialog>
  );
}

function Choice<T extends string | number>(props: {
  label: string;
  options: [T, string][];
  value: T;
  change: (value: T) => void;
}) {
  const { label, options, value, change } = props;
  return (
    <label class="row">
      <span>{label}</span>
      <select
        value={String(value)}
        onChange={(event) => {
          const chosen = options.find(([key]) => String(key) === event.currentTarget.value);
          if (chosen) change(chosen[0]);
        }}
      >
        {options.map(([key, name]) => (
          <option key={key} value={String(key)}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

function AccountDialog() {
  const user = sessions.userId.value;
  const [token, setToken] = useState("");
  const [trouble, setTrouble] = useState("");
  const [isBusy, setBusy] = useState(false);
  const anonymous = sessions.local.value.length;

  const attempt = async (action: () => Promise<unknown>) => {
    setTrouble("");
    setBusy(true);
    try {
      await action();
    } catch (error) {
      setTrouble(error instanceof api.ApiError ? sentence(error.failure.message) : "It failed.");
    }
    setBusy(false);
  };

  return (
    <Dialog title={user ? `Signed in as ${user}` : "Sign in"}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void attempt(async () => {
            await sessions.signIn(token.trim());
            setToken("");
          });
        }}
      >
        <label class="row">
          <span>{user ? "Another token or API key" : "Token or API key"}</span>
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            value={token}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
        </label>
        <p class="hint">
          It stays in this tab and is forgotten when the tab is closed. Conversations of a signed-in
          user are kept by the service, on every device.
        </p>
        {trouble && (
          <p class="trouble" role="alert">
            {trouble}
          </p>
        )}
        <div class="actions">
          <button type="submit" class="main" disabled={!token.trim() || isBusy}>
            Sign in
          </button>
          {user && (
            <button type="button" onClick={sessions.signOut}>
              Sign out
            </button>
          )}
        </div>
      </form>
      {user && anonymous > 0 && (
        <section class="claim">
          <p>
            This browser has {anonymous} {anonymous === 1 ? "conversation" : "conversations"} from
            before you signed in.
          </p>
          <button type="button" disabled={isBusy} onClick={() => attempt(sessions.claimAll)}>
            Move to my account
          </button>
        </section>
      )}
      {user && <Files isBusy={isBusy} attempt={attempt} />}
      <Usage key={user} />
    </Dialog>
  );
}

/** All conversations of the user as a file, and the way back. */
function Files(props: { isBusy: boolean; attempt: (action: () => Promise<unknown>) => Promise<void> }) {
  const { isBusy, attempt } = props;
  const [outcome, setOutcome] = useState("");
  const file = useRef<HTMLInputElement>(null);
  const take = (lines: File) =>
    attempt(async () => {
      setOutcome("");
      const { sessions_imported: count, sessions_skipped: there } = await api.imported(lines);
      await sessions.refresh();
      setOutcome(`Read ${count} ${count === 1 ? "conversation" : "conversations"}` +
        `${there ? `; ${there} were here already` : ""}.`);
    });
  return (
    <section class="files">
      <h3>Conversations</h3>
      <div class="actions">
        <button type="button" disabled={isBusy} onClick={() => attempt(saveAll)}>
          Save all to a file
        </button>
        <button type="button" disabled={isBusy} onClick={() => file.current?.click()}>
          Read from a file
        </button>
      </div>
      <input
        ref={file}
        type="file"
        hidden
        aria-label="File of conversations"
        accept=".jsonl,application/x-ndjson"
        onChange={(event) => {
          const chosen = event.currentTarget.files?.[0];
          event.currentTarget.value = "";
          if (chosen) void take(chosen);
        }}
      />
      {outcome && <p role="status">{outcome}</p>}
    </section>
  );
}

const UNITS: Record<string, string> = { "user-": "you", "key-": "this key", "address-": "your address" };

function Usage() {
  const [report, setReport] = useState<api.UsageReport>();
  useEffect(() => {
    api.usage().then(setReport, () => {});
  }, []);
  const limits = report?.limits.filter(({ quota }) => quota > 0) ?? [];
  if (limits.length === 0) return null;
  return (
    <section class="usage">
      <h3>Use</h3>
      <dl>
        {limits.map(({ limit, unit, used, quota, window_seconds: window }) => {
          const owner = Object.entries(UNITS).find(([start]) => limit.startsWith(start))?.[1];
          const time = window ? ` in ${duration(window)}` : " at a time";
          return (
            <div key={limit}>
              <dt>
                {unit}
                {time}
                {owner && `, ${owner}`}
              </dt>
              <dd>
                <meter
                  min={0}
                  max={quota}
                  value={Math.min(used, quota)}
                  aria-label={`${unit}${time}`}
                />
                {used.toLocaleString("en")} of {quota.toLocaleString("en")}
              </dd>
            </div>
          );
        })}
      </dl>
    </section>
  );
}
