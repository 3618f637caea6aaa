// Reads the PTX that nvcc writes: modules of kernels without calls, textures or local memory.
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <set>
#include <sstream>

#include "program.h"

namespace ptx {
namespace {

std::string stripped(const std::string& text) {
  const char* blank = " \t\r\n";
  const size_t begin = text.find_first_not_of(blank);
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(blank) - begin + 1);
}

std::string without_comments(const std::string& text) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "//") == 0) {
      i = std::min(text.find('\n', i), text.size());
    } else if (text.compare(i, 2, "/*") == 0) {
      i = text.find("*/", i) + 2;
    } else {
      result += text[i++];
    }
  }
  return result;
}

// At separators that are not in brackets.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts{""};
  int depth = 0;
  for (char c : text) {
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
    if (c == separator && depth == 0) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  for (std::string& part : parts) part = stripped(part);
  return parts;
}

bool starts_with(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

bool is_number(const std::string& text) {
  return std::isdigit(static_cast<unsigned char>(text[text[0] == '-'])) != 0;
}

// 12, -1, 0x1F, 0f3F800000, 0d3FF0000000000000
uint64_t number_of(const std::string& text) {
  const bool is_float = text.size() > 2 && text[0] == '0' && std::strchr("fFdD", text[1]);
  if (is_float) return std::strtoull(text.c_str() + 2, nullptr, 16);
  return text[0] == '-' ? static_cast<uint64_t>(std::strtoll(text.c_str(), nullptr, 0))
                        : std::strtoull(text.c_str(), nullptr, 0);
}

// .align 32 .b8 name[64] -> its name and bytes, 0 for name[].
std::pair<std::string, int64_t> read_array(const std::string& declaration) {
  std::istringstream words(declaration);
  std::string word, type;
  while (words >> word) {
    if (word[0] == '.' && bytes_of_type(word.substr(1))) type = word.substr(1);
  }
  const size_t bracket = word.find('[');
  const int64_t count = bracket == std::string::npos ? 1 : std::atoll(word.c_str() + bracket + 1);
  return {word.substr(0, bracket), count * bytes_of_type(type)};
}

// One kernel's text, from its name to the end of its body.
class Parser {
 public:
  Parser(const std::string& text, const std::vector<std::string>& shared_names) {
    kernel_.registers = kSpecials;
    for (int i = 0; i < kSpecials; ++i) registers_[kSpecialNames[i]] = i;
    const size_t begin = text.find('{');
    read_head(text.substr(0, begin));
    read_statements(text, begin + 1);
    for (const std::string& name : shared_names) symbols_[name] = kernel_.shared_bytes;
    for (const auto& [label, statement] : statements_) read_statement(label, statement);
    for (auto& [index, label] : branches_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("no label " + label);
      kernel_.code[index].target = found->second;
    }
  }

  Kernel take() { return std::move(kernel_); }

 private:
  void read_head(const std::string& head) {
    const size_t open = head.find('('), close = head.find(')');
    kernel_.name = stripped(head.substr(0, open));
    const std::string limits = open == std::string::npos ? head : head.substr(close);
    const size_t bound = limits.find(".maxntid");
    if (bound != std::string::npos) kernel_.most_threads = std::atoll(&limits[bound + 8]);
    if (open == std::string::npos) return;
    for (const std::string& text : split(head.substr(open + 1, close - open - 1), ',')) {
      if (text.empty()) continue;
      const auto [name, bytes] = read_array(text);
      const size_t align = text.find(".align");
      const int64_t alignment = align == std::string::npos ? bytes : std::atoll(&text[align + 6]);
      int64_t& end = kernel_.parameter_bytes;
      end = (end + alignment - 1) / alignment * alignment;
      kernel_.parameters.push_back({end, bytes});
      symbols_[name] = end;
      end += bytes;
    }
  }

  // Braces that begin or end a statement's text are of a scope, others of a vector.
  void read_statements(const std::string& text, size_t index) {
    std::string current;
    for (int depth = 1; index < text.size() && depth > 0; ++index) {
      const char c = text[index];
      const std::string before = stripped(current);
      if ((c == '{' || c == '}') && before.empty()) {
        depth += c == '{' ? 1 : -1;
        if (depth > 0) statements_.push_back({false, std::string(1, c)});
        current.clear();
      } else if (c == ':' && before.find_first_of(" \t{[.") == std::string::npos) {
        statements_.push_back({true, before});
        current.clear();
      } else if (c == ';') {
        statements_.push_back({false, before});
        current.clear();
      } else {
        current += c;
      }
      if (c == ';' && starts_with(before, ".shared")) read_shared(before.substr(7));
    }
  }

  void read_shared(const std::string& declaration) {
    const auto [name, bytes] = read_array(declaration);
    symbols_[name] = kernel_.shared_bytes;
    kernel_.shared_bytes += (bytes + 31) / 32 * 32;
  }

  void read_statement(bool is_label, const std::string& text) {
    if (is_label) {
      labels_[text] = static_cast<int32_t>(kernel_.code.size());
    } else if (text == "{") {
      scopes_.emplace_back();
    } else if (text == "}") {
      for (const auto& [name, outer] : scopes_.back()) {
        registers_.erase(name);
        if (outer >= 0) registers_[name] = outer;
      }
      scopes_.pop_back();
    } else if (starts_with(text, ".reg")) {
      for (const std::string& part : split(text.substr(text.find_last_of(" \t") + 1), ',')) {
        declare(part);
      }
    } else if (text[0] != '.') {
      kernel_.code.push_back(read_instruction(text));
    }
  }

  // In a scope, a name hides the register that has it outside.
  void declare(const std::string& name) {
    declared_.insert(name);
    if (scopes_.empty()) return;
    const auto outer = registers_.find(name);
    scopes_.back()[name] = outer == registers_.end() ? -1 : outer->second;
    registers_[name] = kernel_.registers++;
  }

  Instruction read_instruction(const std::string& text) {
    Instruction instruction;
    instruction.text = text;
    std::string rest = text;
    if (rest[0] == '@') {
      const size_t end = rest.find_first_of(" \t");
      instruction.unless = rest[1] == '!';
      const size_t begin = instruction.unless ? 2 : 1;
      instruction.guard = register_of(rest.substr(begin, end - begin));
      rest = stripped(rest.substr(end));
    }
    const size_t end = std::min(rest.find_first_of(" \t"), rest.size());
    Opcode code = read_opcode(rest.substr(0, end));
    const std::vector<std::string> operands = split(rest.substr(end), ',');
    read_operands(operands, &code, &instruction);
    decode_opcode(code, &instruction);
    return instruction;
  }

  static Opcode read_opcode(const std::string& text) {
    Opcode code;
    code.text = text;
    const std::vector<std::string> parts = split(text, '.');
    code.base = parts[0];
    for (size_t i = 1; i < parts.size(); ++i) {
      const bool is_type = parts[i] == "pred" || bytes_of_type(parts[i]);
      (is_type ? code.types : code.modifiers).push_back(parts[i]);
    }
    return code;
  }

  void read_operands(const std::vector<std::string>& operands, Opcode* code, Instruction* to) {
    const std::string& base = code->base;
    if (base == "bra") {
      branches_.emplace_back(kernel_.code.size(), operands[0]);
      return;
    }
    if (base == "ret" || base == "exit" || (base == "bar" && operands.size() == 1)) return;
    const bool writes_memory = base == "st" || base == "red";
    if (writes_memory) add_address(operands[0], to);
    add_registers(operands[writes_memory ? 1 : 0], writes_memory ? &to->in : &to->out);
    if (base == "ld") {
      add_address(operands[1], to);
      return;
    }
    // bar.red out, barrier, in
    const size_t first = base == "bar" ? 2 : writes_memory ? operands.size() : 1;
    for (size_t i = first; i < operands.size(); ++i) add_registers(operands[i], &to->in);
    if (base != "mov") return;
    const size_t parts = std::max(to->in.size(), to->out.size());
    if (parts == 1) return;
    code->base = to->in.size() > 1 ? "pack" : "unpack";
    to->bytes = bytes_of_type(code->types[0]) / static_cast<int32_t>(parts);
  }

  // One register, {several}, or two|alternatives.
  void add_registers(const std::string& text, std::vector<int32_t>* to) {
    const bool is_vector = text[0] == '{';
    const std::string inside = is_vector ? text.substr(1, text.size() - 2) : text;
    for (const std::string& name : split(inside, is_vector ? ',' : '|')) {
      to->push_back(register_of(name));
    }
  }

  // [register], [register+constant], [symbol+constant]
  void add_address(const std::string& text, Instruction* to) {
    const std::string inside = text.substr(1, text.size() - 2);
    const size_t plus = inside.find('+');
    if (plus != std::string::npos) {
      to->offset = static_cast<int64_t>(number_of(stripped(inside.substr(plus + 1))));
    }
    to->in.push_back(register_of(stripped(inside.substr(0, plus))));
  }

  int32_t register_of(const std::string& name) {
    const auto [entry, is_new] = registers_.try_emplace(name, kernel_.registers);
    if (!is_new) return entry->second;
    if (is_number(name)) {
      kernel_.constants[kernel_.registers] = number_of(name);
    } else if (symbols_.count(name)) {
      kernel_.constants[kernel_.registers] = symbols_[name];
    } else if (name[0] != '%' && !declared_.count(name)) {
      throw Fault("cannot read operand " + name);
    }
    return kernel_.registers++;
  }

  Kernel kernel_;
  std::map<std::string, int32_t> registers_, labels_;
  std::map<std::string, int64_t> symbols_;  // addresses in shared memory or of parameters
  std::set<std::string> declared_;
  std::vector<std::map<std::string, int32_t>> scopes_;    // what names mean outside of each, or -1
  std::vector<std::pair<bool, std::string>> statements_;  // is a label; text
  std::vector<std::pair<size_t, std::string>> branches_;  // instruction, label
};

}  // namespace

Program::Program(const std::string& text) {
  const std::string code = without_comments(text);
  const std::string start = ".entry";
  size_t begin = code.find(start);
  std::istringstream head(code.substr(0, begin));
  for (std::string statement; std::getline(head, statement, ';');) {
    const size_t shared = statement.find(".shared");
    if (shared != std::string::npos) {
      shared_names_.push_back(read_array(statement.substr(shared + 7)).first);
    }
  }
  while (begin != std::string::npos) {
    const size_t end = code.find(start, begin + start.size());
    std::string kernel = stripped(code.substr(begin + start.size(), end - begin - start.size()));
    const std::string name = stripped(kernel.substr(0, kernel.find_first_of("({")));
    entries_[name].text = std::move(kernel);
    begin = end;
  }
}

const Kernel* Program::find(const std::string& name) {
  const auto found = entries_.find(name);
  if (found == entries_.end()) return nullptr;
  auto& [text, kernel] = found->second;
  if (!kernel) kernel = std::make_unique<Kernel>(Parser(text, shared_names_).take());
  return kernel.get();
}

std::vector<std::string> Program::names() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.push_back(entry.first);
  return names;
}

}  // namespace ptx
